r"""Prompt syntax of other programs, such as `(word:1.3)`: it is plain text here, which the user should know.

Only what is hardly ever prose is found: `a cat (black)`, `a screen (16:9)` and `PEACE AND LOVE` are not. The time grows
with the length of a prompt, whatever it holds: a bracket is looked at once (possessive quantifiers, such as `++`).
Start reading at `foreign_syntax`.
"""

import re

PATTERNS = (
    r"\\[(\[{][^()\[\]{}]*\\[)\]}]",  # \(word\)
    r"(?<!\()\(++[^()]*[^()\d\s.,/-]\d*(?:\s*:\s*[+-]?\d?\.\d+|:[+-]?\d)\s*\)++",  # (word:1.3)
    r"(?<!\()\(++[^()]+\)(?:\d\.\d+|\+{2,})",  # (word)1.3, (word)++
    r"(?<!\()\({2,}+[^()]+\){2,}+",  # ((word))
    r"(?<![\w\[])\[++(?:(?![\[\]])[\W\d_])*+[^\W\d_][^\[\]]*+\]++",  # [word], [from:to:0.5]; not [1], nor word[s]
    r"<[A-Za-z]\w*:(?!//)[^<>]+>",  # <lora:name:0.8>
    r"\{[^{}|]*+\|[^{}]*+\}",  # {a|b}
    r"(?<!\{)\{{2,}+[^{}]+\}{2,}+",  # {{word}}
    r"(?<!\w)__[A-Za-z](?:[\w/*-]{0,60}[A-Za-z0-9])?__(?!\w)",  # __wildcard__
    r"(?<!\w)embedding:\w[\w.-]*",
    r"(?<!\w)\w++::[+-]?\d?\.?\d+(?!\w)",  # word::2
    r"(?<![\w-])--[a-z]{1,16} \d[\d.:]*",  # --ar 16:9
    r"(?<![A-Z]\s)(?<![\w\"'-])BREAK(?![\w\"'-])(?!\s[A-Z]{2})",  # not among other words in capitals
    r"(?<=[^A-Z\s]\s)AND(?=\s\S)(?!\s[A-Z]{2})",
)
FOREIGN = re.compile("|".join(PATTERNS))


def foreign_syntax(prompt: str) -> list[str]:
    """What a prompt holds of other programs' syntax, each once, in its order."""
    return list(dict.fromkeys(match[0] for match in FOREIGN.finditer(prompt)))
