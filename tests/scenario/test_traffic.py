"""Provisioning goes on while its key is rotated: no call that carries the key that Okta holds is refused (I1)."""

from __future__ import annotations

from rotator.sandbox.lab import Lab, wait_for
from rotator.sandbox.traffic import Traffic

LEAST_CALLS = 100
OVERLAP = "4s"


def test_no_provisioning_call_is_refused_during_a_clean_rotation() -> None:
    with Lab() as lab:
        bench = lab.connect("graf", overlap=OVERLAP, settle="0s")
        lab.write()
        lab.adopt()
        lab.start()
        with Traffic({"graf": lambda: lab.held("graf")}, rate=40.0, workers=4) as traffic:
            wait_for(lambda: traffic.snapshot().succeeded >= 10, "traffic before the rotation")
            assert lab.api("POST", "/v1/connections/graf/rotate", {"reason": "under traffic"}).status_code == 202
            wait_for(lambda: lab.record("graf").get("record", {}).get("last"), "the rotation's end", 120)
            ended = traffic.snapshot().succeeded
            wait_for(lambda: traffic.snapshot().succeeded >= max(ended + 10, LEAST_CALLS), "traffic after the rotation")
        seen = traffic.snapshot()
        last = lab.record("graf")["record"]["last"]
        new_key = lab.okta.held_key(bench.app_id) or ""
        print(seen, last["outcome"], last["times"])

        assert last["outcome"] == "rotated"
        assert new_key != bench.first_key
        assert not bench.target.accepts(bench.first_key), "the old key should be dead: else nothing was at stake"
        assert seen.failed == 0, f"refused with the key that Okta held: {seen}"
        assert seen.calls >= LEAST_CALLS
        assert seen.succeeded == seen.calls, f"calls went wrong in another way: {seen}"
        assert bench.target.calls_with(bench.first_key) > 10
        assert bench.target.calls_with(new_key) > 10
