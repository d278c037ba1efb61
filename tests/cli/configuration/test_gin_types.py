"""Values of a wrong type are told before anything is called with them."""

import pytest

from prompt_tuning.cli import config
from prompt_tuning.cli.arguments import RunArguments
from prompt_tuning.errors import ConfigError

FILE = """
from __gin__ import dynamic_registration
import toy_types as toy
COUNT = 1
toy.typed.count = %COUNT
"""

RIGHT = [
    "count=2",
    "count=-1",
    "share=1",
    "share=1e-3",
    "name='x'",
    "flag=True",
    "maybe=None",
    "maybe=3",
    "either='x'",
    "either=['x']",
    "either=('x','y')",
    "lengths={'a':1}",
    "lengths=None",
    "things=[]",
    "things=[@toy.hidden]",
    "function=3",
    "anything='x'",
    "untyped='x'",
    "untyped=@toy.a_name",
    "name=@toy.a_name()",
    "name=@toy.unsaid()",
    "share=@toy.a_count()",
    "either=@toy.a_name()",
    "function=@toy.a_count",
    "way=None",
    "way=@toy.Straight()",
    "way=@toy.Straight",
    "way=@toy.unsaid()",
    "straight=@toy.Straight()",
    "countable='x'",
    "countable=['x']",
    "anything=@toy.a_count",
]
WRONG = [
    ("count='32'", "an integer", "--gin.typed.count=32"),
    ("count=1.5", "an integer", None),
    ("count=None", "an integer", None),
    ("count=True", "an integer", None),
    ("share='0.3'", "a number", "--gin.typed.share=0.3"),
    ("name=3", "text", "--gin.typed.name=\"'3'\""),
    ("flag='False'", "True or False", "--gin.typed.flag=False"),
    ("flag=1", "True or False", None),
    ("maybe='3'", "an integer or None", "--gin.typed.maybe=3"),
    ("either=3", "text or a list", "--gin.typed.either=\"'3'\""),
    ("lengths=['a']", "a dictionary or None", None),
    ("function='a_count'", "a function (@module.name) or an integer or None", None),
    ("way=3", "Way (@module.name()) or None", None),
    ("way='zigzag'", "Way (@module.name()) or None", None),
    ("straight=None", "Straight (@module.name())", None),
    ("countable=3", "Countable (@module.name())", None),
    ("things='good'", "a list", "--gin.typed.things=\"['good']\""),
]


def parse(*bindings, file=FILE):
    with open("types.gin", "w") as opened:
        opened.write(file)
    config.parse(RunArguments(gin_file=("types.gin",), gin_bindings=bindings))


@pytest.mark.parametrize("binding", RIGHT)
def test_a_value_of_the_right_type_passes(folder, binding):
    parse(f"typed.{binding}")


@pytest.mark.parametrize(("binding", "wanted", "fix"), WRONG)
def test_a_value_of_a_wrong_type_is_named_with_what_was_expected(folder, binding, wanted, fix):
    name, _, value = binding.partition("=")
    with pytest.raises(ConfigError) as error:
        parse(f"typed.{binding}")
    message = f"--gin.typed.{name}: typed.{name} is {value}, expected {wanted}."
    assert str(error.value) == message + (f" Write {fix}." if fix else "")


def test_the_name_of_a_strategy_is_no_strategy(folder):
    with pytest.raises(ConfigError) as error:
        parse("typed.straight=@toy.Straight()", "typed.way='straight'")
    assert str(error.value) == (
        "--gin.typed.way: typed.way is 'straight', expected Way (@module.name()) or None. "
        "Did you mean @toy.Straight()?"
    )


CALLS = {
    "name = @toy.a_name": "a function that is not called, expected text. Write "
    "--gin.typed.name='@toy.a_name()'.",
    "name = @toy.a_count": "a function that is not called, expected text.",
    "name = @toy.a_count()": "which returns something else, expected text.",
    "maybe = @toy.a_name()": "which returns something else, expected an integer or None.",
}


@pytest.mark.parametrize("binding", CALLS)
def test_functions_are_called_and_return_what_is_expected(folder, binding):
    with pytest.raises(ConfigError) as error:
        parse(f"typed.{binding}")
    name, _, value = binding.partition(" = ")
    assert str(error.value) == f"--gin.typed.{name}: typed.{name} is {value}, {CALLS[binding]}"


def test_a_value_behind_a_macro_is_told_where_the_macro_is_set(folder):
    expected = r"types\.gin:4: COUNT is '7', expected an integer, of toy\.typed\.count\. Write "
    with pytest.raises(ConfigError, match=expected + r"--gin\.COUNT=7\."):
        parse(file=FILE.replace("COUNT = 1", "COUNT = '7'"))
    with pytest.raises(ConfigError, match=r"^--gin\.COUNT: COUNT is '7'"):
        parse("COUNT='7'")


def test_all_wrong_values_are_told_at_once(folder):
    with pytest.raises(ConfigError) as error:
        parse("typed.name=3", "typed.flag='x'")
    assert len(str(error.value).splitlines()) == 2


def test_only_the_value_in_effect_counts(folder):
    parse("typed.count='7'", "typed.count=7")


def test_a_function_whose_annotations_cannot_be_read_is_left_alone(folder):
    parse("toy.hidden.count='7'")
