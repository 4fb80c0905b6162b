from __future__ import annotations

import pytest

from functions.events.names import is_config_name, is_mac, normalise_mac

MAC = "aa-bb-cc-dd-ee-ff"


@pytest.mark.parametrize("text", [MAC, MAC.upper(), "0A-bb-cc-dd-ee-9f"])
def test_a_mac_is_six_hex_pairs_joined_by_dashes(text: str) -> None:
    """In any case; a config bears its name."""
    assert is_mac(text)
    assert is_config_name(f"{text}.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aa",
        MAC[:-1],
        f"{MAC}-",
        f" {MAC}",
        f"{MAC}\n",
        MAC.replace("-", ":"),
        MAC.replace("a", "g"),
        "-" * 17,
        f"{MAC}-00",
    ],
)
def test_no_other_spelling_is_a_mac(text: str) -> None:
    """Files and tokens are compared by it."""
    assert not is_mac(text)
    assert not is_config_name(f"{text}.json")


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ("aa:bb:cc:dd:ee:ff", MAC),
        (MAC, MAC),
        ("aabbccddeeff", MAC),
        (" AA-BB-CC-DD-EE-ff ", "AA-BB-CC-DD-EE-ff"),
        ("A1:B2:C3:D4:E5:F6", "A1-B2-C3-D4-E5-F6"),
        ("A1B2C3D4E5F6\n", "A1-B2-C3-D4-E5-F6"),
    ],
)
def test_a_mac_is_read_in_three_spellings_and_keeps_its_case(text: str, mac: str) -> None:
    """Colons, dashes or nothing between the pairs."""
    assert normalise_mac(text) == mac


@pytest.mark.parametrize(
    "text",
    [
        "",
        "aa",
        "aa:bb-cc:dd-ee:ff",
        "aa-bb-cc-dd-ee",
        "aa-bb-cc-dd-ee-fg",
        "aa-bb-cc-dd-ee-ff-00",
        "aa--bb-cc-dd-ee-ff",
        "aabbcc-ddeeff",
        "-aabbccddeeff",
        "\N{ARABIC-INDIC DIGIT ZERO}" * 12,
        "\N{ARABIC-INDIC DIGIT ONE}1-b2-c3-d4-e5-f6",
    ],
)
def test_what_is_no_mac_is_refused(text: str) -> None:
    """Mixed or misplaced separators, wrong digits, wrong length; the message says what would be right."""
    with pytest.raises(ValueError, match="MAC address is six hex pairs"):
        normalise_mac(text)
