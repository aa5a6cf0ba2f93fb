from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.checkpoints._state_dicts import WRAPPERS, bare_keys, bare_name

PARTS = st.sampled_from(["module", "_orig_mod", "_fsdp_wrapped_module", "encoder", "conv", "0"])
KEYS = st.lists(st.lists(PARTS, max_size=4).map(lambda parts: ".".join([*parts, "weight"])), unique=True)


@settings(deadline=None)
@given(KEYS)
def test_no_two_keys_become_one_and_nothing_but_wrappers_goes(keys: list[str]) -> None:
    renamed = bare_keys(keys)
    assert list(renamed) == keys
    assert len(set(renamed.values())) == len(keys)
    for old, new in renamed.items():
        kept = [part for part in old.split(".") if part not in WRAPPERS]
        assert new in (old, ".".join(kept))


@settings(deadline=None)
@given(KEYS)
def test_setting_aside_twice_is_setting_aside_once(keys: list[str]) -> None:
    once = list(bare_keys(keys).values())
    assert list(bare_keys(once).values()) == once


def test_the_root_of_a_wrapped_layer_has_no_name() -> None:
    assert bare_name("module") == ""
    assert bare_keys(["module.weight"]) == {"module.weight": "weight"}
