"""A hook of mkdocs: formulas, written as $...$ and $$...$$, become MathML, which browsers typeset without a script."""

import html
import re
from importlib.metadata import distribution
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

# The marks that pymdownx.arithmatex leaves on a page.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
# Spacing that latex2mathml leaves to the browser, which does not know it.
SPACING = (
    (r"<mo>(&#x02016;)</mo>", r'<mo stretchy="false">\1</mo>'),  # bars of a norm, unless \left and \right enclose it
    (r"<mo>(&#x0221E;)</mo>", r"<mi>\1</mi>"),  # infinity is not an operator
    (r"(<mo[^>]*>(?:&#x00028;|\[|&#x0002C;|&#x0003D;)</mo>)<mo>(&#x02212;)", r'\1<mo form="prefix">\2'),  # a sign
    (r"(<mi>[a-z]{2,}</mi>)(?=<m[^o])", r'\1<mspace width="0.17em"/>'),  # "log x"
)
# STIX Two Math, for machines without a font that has brackets and roots of all sizes.
FONT = "fonts/STIXTwoMath-Regular.ttf"


def on_files(files, config):
    font = Path(distribution("ziamath").locate_file(f"ziamath/{FONT}")).read_bytes()
    files.append(File.generated(config, f"stylesheets/{FONT}", content=font))


def on_page_content(content, page, **_):
    def typeset(match):
        latex = html.unescape(match[2]).strip()
        mathml = convert(latex, display="block" if match[1] == "div" else "inline")
        if "\\" in mathml:
            raise ValueError(f"{page.file.src_uri}: latex2mathml does not know a command of this formula: {latex}")
        for pattern, replacement in SPACING:
            mathml = re.sub(pattern, replacement, mathml)
        return mathml

    return FORMULA.sub(typeset, content)
