"""Colours, fonts and signs, chosen once. Figures draw with stand-in colours that become CSS variables on the page."""

from __future__ import annotations

from dataclasses import dataclass

#: Figure fonts: what matplotlib measures text with comes first, so that labels keep their place.
FONT = "DejaVu Sans"
FONT_STACK = "'DejaVu Sans', Verdana, 'Segoe UI', system-ui, sans-serif"

#: CSS variable -> (light, dark). Series colours are the hues of Okabe and Ito's colour-blind safe set ("Color
#: Universal Design", 2008), darkened on white and lightened on black until lines reach 3:1.
COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171c"),
    "panel": ("#f5f7f9", "#1d2229"),
    "ink": ("#15191e", "#eceff3"),
    "muted": ("#4d5761", "#aab4bf"),
    "line": ("#d5dbe1", "#39424d"),
    "accent": ("#005a8f", "#74c0f0"),
    "focus": ("#b34700", "#ffb066"),
    "good": ("#00624a", "#4fd3ac"),
    "good-tint": ("#ddf1ea", "#12352c"),
    "half": ("#735200", "#ecc758"),
    "half-tint": ("#faf0d4", "#382d0d"),
    "bad": ("#a23400", "#ff9e66"),
    "bad-tint": ("#fce5da", "#41220f"),
    "open": ("#424c57", "#c0c9d3"),
    "open-tint": ("#e9edf1", "#2b323b"),
    "void": ("#7b2a66", "#eba5d3"),
    "void-tint": ("#f6e3f0", "#3b1c33"),
    "s0": ("#0072b2", "#56b4e9"),
    "s1": ("#c44f00", "#f58a42"),
    "s2": ("#00805d", "#2fc99b"),
    "s3": ("#a8457f", "#e79cc6"),
    "s4": ("#8a6a00", "#efd04c"),
    "s5": ("#555f6b", "#b9c3ce"),
}
SERIES = 6
#: What matplotlib draws with -> the CSS variable that takes its place.
STAND_INS: dict[str, str] = {
    "#010101": "ink",
    "#020202": "muted",
    "#030303": "line",
    "#040404": "paper",
    "#050505": "good",
    "#060606": "half",
    "#070707": "bad",
    "#080808": "open",
    "#090909": "void",
    "#0b0b0b": "accent",
    **{f"#0a0a{index:02x}": f"s{index}" for index in range(SERIES)},
}
STAND_IN = {variable: colour for colour, variable in STAND_INS.items()}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Sign:
    """How a verdict or a status looks: a glyph, so that colour is never alone, and a tone for CSS."""

    glyph: str
    tone: str
    meaning: str
    short: str = ""


VERDICTS: dict[str, Sign] = {
    "reproduced": Sign(
        glyph="✓",
        tone="good",
        meaning="the whole interval clears the noise floor and reaches the claim within tolerance",
        short="beyond noise, and as much as claimed",
    ),
    "partly": Sign(
        glyph="◐",
        tone="half",
        meaning="a gain beyond the noise floor, but short of the claim",
        short="a gain beyond noise, but less than claimed",
    ),
    "not reproduced": Sign(
        glyph="✗",
        tone="bad",
        meaning="no gain beyond the noise floor, or the candidate gives a wrong answer",
        short="no gain beyond noise, or wrong",
    ),
    "inconclusive": Sign(
        glyph="?",
        tone="open",
        meaning="the interval or the noise leaves the question open",
        short="noise or too few repetitions",
    ),
    "invalid": Sign(
        glyph="!", tone="void", meaning="the measurement itself is broken", short="the measurement is broken"
    ),
    "not testable here": Sign(
        glyph="–",
        tone="open",
        meaning="this machine lacks something that the claim needs",
        short="no run here, or a need is missing",
    ),
}
STATUSES: dict[str, Sign] = {
    "passed": Sign(glyph="✓", tone="good", meaning="correct; may be timed"),
    "target_reached": Sign(glyph="✓", tone="good", meaning="training reached its target"),
    "inaccurate": Sign(glyph="✗", tone="bad", meaning="too far from the oracle, the true answer"),
    "unfaithful": Sign(glyph="✗", tone="bad", meaning="too far from the method's own plain reference"),
    "nonfinite": Sign(glyph="✗", tone="bad", meaning="NaN or infinity in the output"),
    "impure": Sign(glyph="✗", tone="bad", meaning="changed its input, or returned a stale answer"),
    "error": Sign(glyph="!", tone="void", meaning="raised an exception or crashed"),
    "timeout": Sign(glyph="!", tone="void", meaning="gave no answer in the allowed time"),
    "out_of_memory": Sign(glyph="!", tone="void", meaning="asked for more memory than there is"),
    "unsupported": Sign(glyph="–", tone="open", meaning="was not run, for the reason given"),
    "interrupted": Sign(glyph="?", tone="open", meaning="stopped before it was measured"),
    "unstable": Sign(glyph="?", tone="half", meaning="measured, but the blocks cannot be trusted"),
    "budget_exhausted": Sign(glyph="✗", tone="bad", meaning="training missed its target within the budget"),
    "diverged": Sign(glyph="✗", tone="bad", meaning="training diverged"),
}
CHANGES: dict[str, Sign] = {
    "slower": Sign(glyph="▼", tone="bad", meaning="worse beyond the noise floor"),
    "faster": Sign(glyph="▲", tone="good", meaning="better beyond the noise floor"),
    "inconclusive": Sign(glyph="?", tone="open", meaning="the blocks do not decide"),
    "no difference": Sign(glyph="≈", tone="open", meaning="the whole interval lies within 5 %"),
}
UNKNOWN = Sign(glyph="?", tone="open", meaning="not a word of this version")


def css_variables() -> str:
    """The custom properties of both themes; the attribute set by the toggle wins over the system's wish."""
    light = "".join(f"--{name}:{pair[0]};" for name, pair in COLOURS.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in COLOURS.items())
    return (
        f":root{{color-scheme:light;--font:{FONT_STACK};{light}}}"
        f"@media (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}"
        f":root[data-theme=light]{{color-scheme:light;{light}}}"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}"
        f"@media print{{:root,:root[data-theme=dark]{{color-scheme:light;{light}}}}}"
    )
