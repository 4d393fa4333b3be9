"""What the documents say of stages and configuration is what the code says."""

import pytest

from components.documentation import COMPONENTS, readme
from sr_core.config import Config, Section, load_config
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_readme_of_a_component_is_up_to_date(component):
    written = (REPOSITORY / "components" / component / "README.md").read_text(encoding="utf-8")
    assert written == readme(component), "run `python -m components.documentation`"


@pytest.mark.parametrize("name", ["demo", "okavango", "belgium", "my-field", "country"])
def test_the_examples_are_valid(name):
    assert load_config(REPOSITORY / "examples" / f"{name}.yaml", {}).name == name


def test_readme_names_the_two_commands_and_existing_files():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    first_screen = "\n".join(text.splitlines()[:40])
    assert "make demo" in first_screen and "make test" in first_screen
    for component in COMPONENTS:
        assert f"components/{component}/README.md" in text


def undescribed(section: type[Section], prefix: str = "") -> list[str]:
    """Keys of a section, and of those inside it, without a description."""
    found = []
    for key, field in section.model_fields.items():
        parts = (field.annotation, *getattr(field.annotation, "__args__", ()))
        inner = [part for part in parts if isinstance(part, type) and issubclass(part, Section)]
        found += [name for part in inner for name in undescribed(part, f"{prefix}{key}.")]
        if not inner and not field.description:
            found.append(prefix + key)
    return found


def test_every_configuration_key_is_described():
    assert undescribed(Config) == []
