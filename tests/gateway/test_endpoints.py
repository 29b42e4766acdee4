import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.endpoints import ENDPOINTS, StreamEnd

STREAMS = {
    "/v1/chat/completions": b'data: {"a": 1}\n\ndata: {"b": 2}\n\ndata: [DONE]\n\n',
    "/v1/completions": b'data: {"text": "data: [DONE]"}\n\ndata: [DONE]\n\n',
    "/v1/responses": b'event: a\ndata: {"delta": "event: response.completed"}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","text":"a"}\n\n',
    "/v1/messages": b'event: a\ndata: {"text": "event: message_stop\\n"}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
}


@pytest.mark.parametrize("path", STREAMS)
@given(data=st.data())
def test_the_end_of_a_stream_is_seen_with_its_last_byte_and_not_before(
    path: str, data: st.DataObject
) -> None:
    body = STREAMS[path]
    cuts = sorted(data.draw(st.lists(st.integers(1, len(body) - 1), max_size=12, unique=True)))
    chunks = [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]
    end = StreamEnd(ENDPOINTS[path])

    assert [end.is_reached(chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
