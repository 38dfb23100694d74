"""traceparent, by the text of W3C Trace Context and by OpenTelemetry's own propagator."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from graylb import _trace
from tests.fuzz.fields import by_the_text

HEX = "0123456789abcdef"
GOOD = st.builds(
    "{}-{}-{}-{}{}".format,
    st.sampled_from(["00", "00", "01", "fe", "ff", "0g", "0A"]),
    st.text(HEX, min_size=32, max_size=32) | st.sampled_from(["0" * 32, "A" * 32, "a" * 31, "a" * 33]),
    st.text(HEX, min_size=16, max_size=16) | st.sampled_from(["0" * 16, "b" * 15]),
    st.sampled_from(["00", "01", "03", "ff", "0x", "1"]),
    st.sampled_from(["", "", "-", "-what", "x"]),
)


@given(GOOD | st.text(HEX + "-", max_size=60))
@example("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
def test_a_traceparent_is_read_as_the_text_says(value: str) -> None:
    assert _trace.parent_of(value.encode()) == by_the_text(value)


@given(st.text(HEX, min_size=32, max_size=32), st.text(HEX, min_size=16, max_size=16), st.sampled_from(["00", "01"]))
def test_and_as_opentelemetry_reads_it(trace_id: str, span_id: str, flags: str) -> None:
    value = f"00-{trace_id}-{span_id}-{flags}"
    context = TraceContextTextMapPropagator().extract({"traceparent": value})
    theirs = trace.get_current_span(context).get_span_context()
    ours = _trace.parent_of(value.encode())
    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert ours == (trace_id, span_id, bool(theirs.trace_flags & 1))
