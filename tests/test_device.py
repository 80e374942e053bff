"""Device profiles: every shipped one is complete and sourced, and the schema forgives nothing."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.device import CONFIDENCE, FOLDER, KINDS, VALUES, list_devices, load_device, read_device
from pulse_edge.errors import PulseEdgeError, UnknownNameError

NUMBERS = [name for name in VALUES if name.endswith(("_gb", "_fraction", "_gb_s", "tflops", "_tops"))]


@pytest.fixture
def profile():
    def entry(key):
        value = {"fraction": 0.5, "ids": ["p1"], "modes_w": [7, 15], "precisions": ["fp16"]}
        found = next((v for end, v in value.items() if key.endswith(end)), 8 if key in NUMBERS else "8.7")
        return {"value": found, "source": "the vendor's data sheet", "confidence": "A"}

    return {"name": "box", "kind": "jetson", "title": "A box", **{name: entry(name) for name in VALUES}}


@pytest.fixture
def read(tmp_path):
    def go(profile):
        path = tmp_path / "box.yaml"
        path.write_text(profile if isinstance(profile, str) else yaml.safe_dump(profile))
        return read_device(path)

    return go


def test_the_shipped_profiles():
    names = list_devices()
    assert set(names) >= {
        "orin-nano-4gb", "orin-nano-8gb", "orin-nx-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb",
        "thor-t4000", "thor-t5000", "iphone-13", "iphone-13-pro", "iphone-14", "iphone-14-pro", "iphone-15",
        "iphone-15-pro", "iphone-16", "iphone-16e", "iphone-16-pro", "iphone-17", "iphone-17-pro",
        "iphone-air", "ipad-m1", "ipad-m2", "ipad-m3", "ipad-m4", "ipad-m5", "mac-m1", "x86-cpu",
        "raspberry-pi-5",
    }  # fmt: skip
    assert names == sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", list_devices())
def test_every_shipped_profile_is_whole(name):
    device = load_device(name)
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert (device.name, device.kind in KINDS) == (name, True)
    assert set(device.values) == set(VALUES)
    for key, value in device.values.items():
        assert raw[key] == {"value": value.value, "source": value.source, "confidence": value.confidence}
        if value.value is not None:
            assert value.source
            assert value.confidence in CONFIDENCE
    keys = ("sm", "jetpack", "tensorrt", "os_floor")
    tied = {key: raw[key]["value"] for key in keys if key != "os_floor" or raw[key]["value"]}
    assert device.constraints == tied
    if device.kind in ("iphone", "ipad", "mac"):
        assert device.constraints["os_floor"]
        assert 0 < device.values["usable_fraction"].value < 1
    if device.kind == "jetson":
        assert device.values["ram_gb"].value > 0
        assert "fp16" in device.values["precisions"].value
        assert isinstance(device.values["sm"].value, str)  # 8.7 is a version; YAML would make 8.70 the same


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("orin-nano-8g", "orin-nano-8gb"),
        ("Orin-Nano-8GB", "orin-nano-8gb"),
        ("x86", "x86-cpu"),
        ("zzzz", None),
    ],
)
def test_an_unknown_device_names_the_nearest(name, nearest):
    with pytest.raises(UnknownNameError) as caught:
        load_device(name)
    assert caught.value.nearest == nearest
    assert caught.value.exit_code == 2
    assert (f"Did you mean '{nearest}'?" in str(caught.value)) == (nearest is not None)


@pytest.mark.parametrize("name", ["", "../devices/x86-cpu", "x86-cpu.yaml", "*", "a\0b"])
def test_a_name_is_not_a_path(name):
    with pytest.raises(UnknownNameError, match="Unknown device"):
        load_device(name)


def test_a_profile_is_read(read, profile):
    profile["sm"] = {"value": None, "source": None, "confidence": None}
    device = read(profile)
    assert device.values["sm"].value is None
    assert device.values["ram_gb"].value == 8


@pytest.mark.parametrize("key", ["name", "kind", "title", *VALUES])
def test_every_key_is_required(read, profile, key):
    del profile[key]
    with pytest.raises(PulseEdgeError, match=rf"lacks {key}; write null"):
        read(profile)


@pytest.mark.parametrize(("key", "nearest"), [("ram_gib", "ram_gb"), ("tensor_rt", "tensorrt"), (7, None)])
def test_an_unknown_key_names_the_nearest(read, profile, key, nearest):
    profile[key] = profile["ram_gb"]
    with pytest.raises(UnknownNameError, match=r"Unknown key in box\.yaml") as caught:
        read(profile)
    assert caught.value.nearest == nearest


def test_an_unknown_key_of_a_value(read, profile):
    profile["sm"]["sauce"] = profile["sm"].pop("source")
    with pytest.raises(UnknownNameError, match=r"'sauce'\. Did you mean 'source'"):
        read(profile)


@pytest.mark.parametrize("part", ["value", "source", "confidence"])
def test_every_part_of_a_value_is_required(read, profile, part):
    del profile["sm"][part]
    with pytest.raises(PulseEdgeError, match=f"lacks {part}"):
        read(profile)


@pytest.mark.parametrize(
    "change",
    [{"source": None}, {"source": ""}, {"confidence": None}, {"confidence": "D"}, {"confidence": "a"}],
)
def test_a_value_needs_source_and_confidence(read, profile, change):
    profile["int8_tops"].update(change)
    with pytest.raises(PulseEdgeError, match="int8_tops needs a source and a confidence"):
        read(profile)


def test_a_key_that_stands_twice_is_refused(read, profile):
    text = yaml.safe_dump(profile)
    with pytest.raises(PulseEdgeError, match="ram_gb stands there twice"):
        read(text + "ram_gb: {value: 16, source: x, confidence: A}\n")
    with pytest.raises(PulseEdgeError, match="value stands there twice"):
        read(text.replace("ram_gb:\n", "ram_gb:\n  value: 9\n"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_profile_is_half_right(read, profile, data):
    """Whatever one value is replaced by, it is read as it stands or refused with a sentence of ours."""
    key = data.draw(st.sampled_from([*profile]))
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["value", "source", "confidence", "sauce"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
    changed = {**profile, key: data.draw(anything)}
    try:
        device = read(changed)
    except PulseEdgeError:
        return
    if key in VALUES:
        assert set(changed[key]) == {"value", "source", "confidence"}
        assert device.values[key].value is None or changed[key]["source"].strip()


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("value", [0, -1, True, float("nan"), float("inf"), "", " ", [], {}, {"a": 1}])
def test_a_value_of_another_kind_is_refused(read, profile, key, value):
    profile[key]["value"] = value
    with pytest.raises(PulseEdgeError, match=f"{key} must be .*; write null where it is not known"):
        read(profile)


@pytest.mark.parametrize("key", ["usable_fraction", "entitled_fraction"])
def test_a_share_is_at_most_one(read, profile, key):
    profile[key]["value"] = 1
    assert read(profile).values[key].value == 1
    profile[key]["value"] = 1.01
    with pytest.raises(PulseEdgeError, match="a share above 0 and at most 1"):
        read(profile)


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"kind": "toaster"}, {"kind": ["jetson"]}, {"kind": None}]
)
def test_name_and_kind_are_checked(read, profile, change):
    with pytest.raises(PulseEdgeError, match="must have its file's name and a kind of"):
        read({**profile, **change})


@pytest.mark.parametrize(
    "content", ["", "[]", "just text", "name: [", "a: b: c", "\t- x", "!!python/name:os.system x"]
)
def test_no_profile_at_all(read, content):
    with pytest.raises(PulseEdgeError):
        read(content)


@pytest.mark.parametrize("value", [3, "text", None, []])
def test_a_bare_value_is_refused(read, profile, value):
    profile["ram_gb"] = value
    with pytest.raises(PulseEdgeError, match="expected the keys value, source, confidence"):
        read(profile)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "box.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PulseEdgeError, match="cannot be read"):
        read_device(path)
