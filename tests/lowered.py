"""What a program becomes for a TPU, where float32 products are rounded to 16 bits by default."""

import re

import jax

_PRODUCT = re.compile(r"stablehlo\.(dot_general|convolution)\b.*: \((.*?)\) ->")


def coarse_products(function, *arguments, enough=("HIGHEST",)):
    """The float32 products of a function's program for a TPU that are less than exact.

    Args:
        function: pure; not called, but traced.
        arguments: arrays or their shapes.
        enough: precisions that count as exact.
    """
    traced = jax.jit(function).trace(*arguments)
    program = traced.lower(lowering_platforms=("tpu",)).as_text()
    found = []
    for line in program.splitlines():
        product = _PRODUCT.search(line)
        if product is None or "f32>" not in product[2]:
            continue
        given = re.search(r"precision(?:_config)?\s*=\s*\[(.*?)\]", line)
        names = set(re.findall(r"[A-Z]+", given[1])) if given else {"DEFAULT"}
        if not names <= set(enough):
            found.append(f"{product[1]} {product[2]} {sorted(names)}")
    return found
