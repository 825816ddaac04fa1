"""Addresses must not leak: every printed form of a Url, and free text that quotes one."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError, StageError
from pipeline.url import Url, redact

SECRET = st.text(
    st.characters(codec="utf-8", exclude_categories=("Z", "C"), exclude_characters="'\"<>"),
    min_size=5,
)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("rtsp://user:pass@10.0.0.1:554/live", "rtsp://***@10.0.0.1:554/live"),
        ("rtsp://user@host/live", "rtsp://***@host/live"),
        ("rtsp://host/live", "rtsp://host/live"),
        # Characters that users put into passwords without escaping them.
        ("rtsp://admin:p@ss/w#rd?1@host/live", "rtsp://***@host/live"),
        ("http://host/v.m3u8?token=abc&x=1", "http://host/v.m3u8?token=***&x=1"),
        ("rtmp://host/app?user=bob&password=s3cret", "rtmp://host/app?user=***&password=***"),
        ("http://host/a?X-Amz-Signature=1234", "http://host/a?X-Amz-Signature=***"),
        ("clips/street.mp4", "clips/street.mp4"),
        ("/home/me@work/street.mp4", "/home/me@work/street.mp4"),
    ],
)
def test_credentials_are_masked_and_the_rest_is_kept(raw, shown):
    assert str(Url(raw)) == shown
    assert f"{Url(raw)}" == shown
    assert shown in repr(Url(raw))
    assert Url(raw).reveal() == raw


@given(user=SECRET, password=SECRET)
def test_no_printed_form_holds_the_password(user, password):
    url = Url(f"rtsp://{user}:{password}@camera.local:554/stream1")
    for text in (str(url), repr(url), f"{url:>100}", f"{[url]}", f"{ {'u': url} }"):
        assert password not in text.replace("camera.local:554/stream1", "")


@given(password=SECRET)
def test_library_messages_are_cleaned_also_where_they_quote_the_password_alone(password):
    url = Url(f"rtsp://admin:{password}@camera.local/live")
    message = f"401 for {url.reveal()}: user admin:{password} was refused ({password})"
    cleaned = url.clean(message)
    assert password not in cleaned.replace("was refused", "").replace("camera.local/live", "")


def test_text_with_several_addresses_is_cleaned_throughout():
    text = "tried rtsp://a:b1@h1/x, then 'http://c:d2@h2/y' and rtsp://h3/z"
    assert redact(text) == "tried rtsp://***@h1/x, then 'http://***@h2/y' and rtsp://h3/z"


def test_a_traceback_with_a_url_in_it_is_clean():
    url = Url("rtsp://admin:hunter2@cam/live")
    error = StageError("cam", "open", SourceError(f"cannot connect to {url}"))
    assert "hunter2" not in "".join(traceback.format_exception(error))


def test_a_url_is_a_value_that_cannot_be_written_to_a_pickle():
    assert Url("a") == Url("a") != Url("b")
    assert len({Url("a"), Url("a")}) == 1
    with pytest.raises(TypeError, match="credentials"):
        pickle.dumps(Url("rtsp://a:b@c"))


def test_options_that_hold_a_url_can_be_copied():
    url = Url("rtsp://a:b@c")
    assert copy.deepcopy({"url": [url]})["url"][0] is url
    assert copy.copy(url) is url
