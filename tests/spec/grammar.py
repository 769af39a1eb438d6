"""RFC 5234 ABNF as a regular expression, for grammars without recursion: spec/levels.abnf read by its own rules."""

import re

CORE = {"ALPHA": "[A-Za-z]", "SP": " ", "HTAB": r"\t", "CR": r"\r", "LF": r"\n", "DIGIT": "[0-9]"}
TOKEN = re.compile(
    r"\s*(?:(?P<string>\"[^\"]*\")|(?P<hex>%x[0-9A-F]+(?:[-.][0-9A-F]+)*)|(?P<name>[A-Za-z][A-Za-z0-9-]*)"
    r"|(?P<repeat>[0-9]*\*[0-9]*)|(?P<mark>[()\[\]/]))"
)


def rules(grammar: str) -> dict[str, list[str]]:
    """Name of each rule, with the tokens of its definition."""
    found: dict[str, list[str]] = {}
    for line in grammar.splitlines():
        code = re.match(r"(?:\"[^\"]*\"|[^;\"])*", line).group().rstrip()
        if not code:
            continue
        name, definition = code.split("=", 1) if not code.startswith(" ") else (None, code)
        tokens, at = [], 0
        while definition[at:].strip():
            match = TOKEN.match(definition, at)
            assert match, f"not ABNF: {definition[at:]!r}"
            tokens.append(match.group().strip())
            at = match.end()
        if name is None:
            found[list(found)[-1]] += tokens
        else:
            assert name.strip() not in found, f"{name} is defined twice"
            found[name.strip()] = tokens
    return found


def regex(grammar: str, start: str, behind: dict[str, str] | None = None) -> str:
    """A regular expression for the rule `start`; to be matched as a whole. `behind` adds assertions before rules."""
    known = rules(grammar)

    def alternatives(tokens: list[str]) -> str:
        options = [concatenation(tokens)]
        while tokens and tokens[0] == "/":
            tokens.pop(0)
            options.append(concatenation(tokens))
        return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"

    def concatenation(tokens: list[str]) -> str:
        parts = []
        while tokens and tokens[0] not in {"/", ")", "]"}:
            parts.append(element(tokens))
        return "".join(parts)

    def element(tokens: list[str]) -> str:
        token = tokens.pop(0)
        if "*" in token and not token.startswith('"'):
            least, most = token.split("*")
            return f"(?:{element(tokens)})" + ("*" if not least + most else f"{{{least or 0},{most}}}")
        if token in {"(", "["}:
            inside = alternatives(tokens)
            assert tokens.pop(0) == {"(": ")", "[": "]"}[token]
            return f"(?:{inside})" + ("?" if token == "[" else "")
        if token.startswith('"'):
            text = token.strip('"')
            assert not text.isalpha(), "letters in quotes are case-insensitive in ABNF: write them with %x"
            return re.escape(text)
        if token.startswith("%x"):
            if "-" in token:
                first, last = (chr(int(code, 16)) for code in token[2:].split("-"))
                return f"[{first}-{last}]"
            return "".join(chr(int(code, 16)) for code in token[2:].split("."))
        if token in CORE:
            return CORE[token]
        return f"(?:{(behind or {}).get(token, '')}{alternatives([*known[token]])})"

    return alternatives([*known[start]])
