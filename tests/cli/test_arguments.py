import pytest

from worldstereo_jax.cli.arguments import LARGEST_SEED, ArgumentParser, count, seed
from worldstereo_jax.errors import InputError


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="worldstereo x")
    parser.add_argument("--seed", type=seed)
    parser.add_argument("--steps", type=count)
    return parser


def test_numbers_within_their_range_are_read():
    options = _parser().parse_args(["--seed", str(LARGEST_SEED), "--steps", "1"])
    assert (options.seed, options.steps) == (LARGEST_SEED, 1)


@pytest.mark.parametrize(
    "arguments",
    [["--seed", "-1"], ["--seed", str(2**32)], ["--seed", "1.5"], ["--steps", "0"]],
)
def test_other_numbers_end_in_a_sentence_naming_option_and_value(arguments):
    with pytest.raises(InputError) as error:
        _parser().parse_args(arguments)
    assert f"argument {arguments[0]}: expected a whole number from" in str(error.value)
    assert repr(arguments[1]) in str(error.value)


def test_unknown_and_incomplete_options_end_in_a_sentence():
    for arguments in (["--sed", "1", "--x"], ["--seed"], ["stray"]):
        with pytest.raises(InputError, match="see worldstereo x --help"):
            _parser().parse_args(arguments)
