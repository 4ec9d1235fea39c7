"""A hook of mkdocs: formulas, written as $...$ and $$...$$, become MathML, which browsers typeset without a script."""

import html
import re
from importlib.metadata import distribution
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

# The marks that pymdownx.arithmatex leaves on a page.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
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
        # A norm's bars are as high as its letters, unless they are written with \\left and \\right.
        return mathml.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')

    return FORMULA.sub(typeset, content)
