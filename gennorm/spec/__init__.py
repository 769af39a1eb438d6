"""From text to axes: level specs, the settings of a layer, and what they mean for one array."""
