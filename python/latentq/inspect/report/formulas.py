"""The formulas of a dataset as MathML: from codes to raw latents, and from those to training values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentq.format.normalization import Normalization
from latentq.inspect.report.parts import Table
from latentq.quantizer import Quantizer

if TYPE_CHECKING:
    from markupsafe import Markup

    from latentq.inspect.report.facts import DatasetFacts

_ROWS = 256  # channels in a table, at most


@dataclass(frozen=True)
class Formula:
    """A formula.

    Attributes:
        name: What it computes, for readers who do not see it.
        text: A sentence before it.
        math: The formula in MathML.
        code: The formula as Python; empty if there is none.
        table: Its numbers, if they differ by channel.
    """

    name: str
    text: str
    math: Markup
    code: str = ""
    table: Table | None = None


def formulas(facts: DatasetFacts) -> list[Formula]:
    """Returns the formulas of a dataset's first column of latents; none without latents."""
    column = next((column for column in facts.columns if column.content in ("latent", "moments")), None)
    if column is None:
        return []
    found = _codes(column.facts.quantizer)
    result = [] if found is None else [found]
    if facts.card is not None:
        is_scaled = facts.recipe.columns[column.name].scaled
        result.append(_normalization(facts.card.autoencoder.normalization, is_scaled))
    return result


def _codes(quantizer: Any) -> Formula | None:
    """Returns how codes become values; None for a transform, which docs/codec.md describes."""
    text = "A code becomes a value by the step of its channel."
    if not isinstance(quantizer, Quantizer) or quantizer.kind not in ("uniform", "affine"):
        return None
    top = 2**quantizer.bits - 1
    step = _row(_name("high", "c"), "<mo>-</mo>", _name("low", "c"))
    math = _math(
        _name("z", "c"), "<mo>=</mo>", _name("low", "c"), "<mo>+</mo>", "<mi>code</mi>", "<mo>·</mo>",
        f"<mfrac>{step}<mn>{top}</mn></mfrac>",
    )  # fmt: skip
    pairs = list(zip(quantizer.low, quantizer.high, strict=True))
    if len(set(pairs)) == 1:
        low, high = pairs[0]
        return Formula("From codes to values", f"{text} The range of all channels is {low:.6g} to {high:.6g}.", math)
    rows = [(str(number), f"{low:.6g}", f"{high:.6g}") for number, (low, high) in enumerate(pairs[:_ROWS])]
    table = Table("The range of each channel", ("channel c", "low", "high"), rows)
    return Formula("From codes to values", text, math, "", table)


def _normalization(normalization: Normalization, is_scaled: bool) -> Formula:
    """Returns how raw latents become training values."""
    patched = "<mi>z</mi>"
    if normalization.patchify > 1:
        patched = _row("<mi>patchify</mi>", "<mo>(</mo>", patched, "<mo>)</mo>")
    has_means = bool(normalization.positions) or len(normalization.mean) > 1
    has_stds = bool(normalization.positions) or len(normalization.std) > 1
    index = "p" if normalization.positions else "c"
    parts = [patched]
    if has_means:
        parts = ["<mo>(</mo>", patched, "<mo>-</mo>", _name("mean", index), "<mo>)</mo>"]
    elif normalization.mean[0]:
        sign = "-" if normalization.mean[0] > 0 else "+"
        parts = ["<mo>(</mo>", patched, f"<mo>{sign}</mo>", _number(abs(normalization.mean[0])), "<mo>)</mo>"]
    if normalization.factor != 1:
        parts += ["<mo>·</mo>", _number(normalization.factor)]
    body = _row(*parts)
    if has_stds or normalization.std[0] != 1:
        below = _name("std", index) if has_stds else _number(normalization.std[0])
        body = f"<mfrac>{body}{below}</mfrac>"
    text = 'Training values (scale="scaled") follow from raw latents z'
    text += " and are what is stored." if is_scaled else "; raw latents are what is stored."
    if normalization.positions:
        text += " Mean and std of each position p are in normalization.npy."
    table = None
    count = max(len(normalization.mean), len(normalization.std))
    if count > 1 and not normalization.positions:
        means, stds = (side * count if len(side) == 1 else side for side in (normalization.mean, normalization.std))
        rows = [(str(n), f"{m:.6g}", f"{s:.6g}") for n, (m, s) in enumerate(zip(means, stds, strict=True))][:_ROWS]
        table = Table("Mean and std of each channel", ("channel c", "mean", "std"), rows)
    math = _math("<msub><mi>z</mi><mtext>scaled</mtext></msub>", "<mo>=</mo>", body)
    return Formula("From raw latents to training values", text, math, f"scaled = {normalization.formula}", table)


def _math(*parts: str) -> Markup:
    from markupsafe import Markup

    return Markup(f'<math xmlns="http://www.w3.org/1998/Math/MathML">{_row(*parts)}</math>')


def _row(*parts: str) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


def _name(name: str, index: str) -> str:
    return f"<msub><mi>{name}</mi><mi>{index}</mi></msub>"


def _number(value: float) -> str:
    return f"<mn>{value:.6g}</mn>"
