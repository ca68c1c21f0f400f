"""Ids of features: the same for ever, and found again."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from sparsight.ids import NAMESPACE, feature_id, feature_uuid, index_of


@given(st.text(), st.integers(0, 2**31))
def test_an_id_is_the_uuid_of_the_sae_and_the_index(sae, index):
    sae = sae.encode("utf-8", "replace").decode()
    assert feature_id(sae, index) == uuid.uuid5(NAMESPACE, f"{sae}/{index}").hex
    assert feature_uuid(sae, index) == str(uuid.uuid5(NAMESPACE, f"{sae}/{index}"))


@given(st.integers(0, 999))
def test_every_form_of_an_id_leads_back_to_its_feature(index):
    id = feature_uuid("0123456789abcdef", index)
    for form in (id, id.upper(), id.replace("-", ""), f"{{{id}}}", f"urn:uuid:{id}"):
        assert index_of(form, "0123456789abcdef", 1000) == index
    assert index_of(id, "another", 1000) is None


def test_what_is_no_id_of_this_sae_leads_nowhere():
    assert index_of(feature_uuid("a", 1000), "a", 1000) is None
    assert index_of("no id", "a", 10) is None
    assert index_of("", "a", 10) is None
