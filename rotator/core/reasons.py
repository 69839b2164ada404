"""The closed vocabulary of reasons. Logs, metric labels, the state record, the ledger, HTTP and CLI use these words;
the sentence beside a reason may change, the word may not.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a rotation is due, is held, waits, failed or ended."""

    # due
    INTERVAL = "interval"  # rotate_every has passed since the last rotation
    CRON = "cron"  # the cron schedule fired since the last rotation
    EXPIRY = "expiry"  # the key's expiry comes within the margin
    ASKED = "asked"  # a person or a program asked
    BOOTSTRAP = "bootstrap"  # no key known and the configuration says to begin by rotating

    # not due, or held
    NOT_DUE = "not_due"
    FREEZE = "freeze"  # inside a freeze period
    OUTSIDE_WINDOW = "outside_window"
    BRAKE = "brake"  # too many failures in a row at this IdP or target
    BACKOFF = "backoff"  # the last rotation failed; waiting before another
    IN_PROGRESS = "in_progress"
    KEY_UNKNOWN = "key_unknown"  # no current key in Vault: adopt one or bootstrap
    DRIFT = "drift"  # the target refuses the key that Vault calls current while the IdP is healthy
    STUCK = "stuck"  # the last rotation needs a person
    CLOCK = "clock"  # our clock is off or jumped
    SPACING = "spacing"  # min_spacing after another rotation at the same IdP
    PARALLEL = "parallel"  # max_parallel rotations at the same IdP
    DISABLED = "disabled"  # schedule switched off for this connection

    # waiting inside a rotation
    SETTLING = "settling"  # the new key is not yet accepted everywhere
    PROVING = "proving"  # collecting consecutive successes
    OVERLAPPING = "overlapping"  # both keys live, watching
    RATE_LIMITED = "rate_limited"
    TARGET_DOWN = "target_down"
    IDP_DOWN = "idp_down"
    VAULT_DOWN = "vault_down"
    DENIED = "denied"  # our own credential lacks a right
    NOT_FOUND = "not_found"
    AWAITING_KEY = "awaiting_key"  # a person leaves the key in the hand-off path
    AWAITING_PUSH = "awaiting_push"  # a person types the key into the IdP
    AWAITING_RESTORE = "awaiting_restore"  # a person types the old key back
    FEATURES_CHANGED = "features_changed"  # the app's provisioning features differ from before the push
    ASSERTED_ONLY = "asserted_only"  # only a person's word says that the IdP has the new key; its log shows nothing
    FOREIGN_CHANGE = "foreign_change"  # somebody else changed the connection
    OLD_KEY_IN_USE = "old_key_in_use"  # the old key was used after the push, and not by us
    CONNECTION_NOT_ENABLED = "connection_not_enabled"
    CONNECTION_DIFFERS = "connection_differs"  # scheme or base URL is not what we pushed
    AMBIGUOUS = "ambiguous"  # sent, outcome unknown

    # failed, or ended so
    KEY_REFUSED = "key_refused"  # the target refused the candidate
    KEY_REFUSED_BY_IDP = "key_refused_by_idp"
    KEY_BAD_IN_USE = "key_bad_in_use"  # the IdP's log says that the key fails in real use
    KEY_FORMAT = "key_format"
    KNOWN_KEY = "known_key"  # a person handed over a key that was seen before
    ENDPOINT_OPEN = "endpoint_open"  # negative control: a corrupted key was accepted
    CAP_REACHED = "cap_reached"  # live-key cap full of keys that aren't ours
    IDP_DISABLED = "idp_disabled"  # an admin switched the connection off
    PLAINTEXT_LOST = "plaintext_lost"  # minted, never stored; revoked by label
    PREVIOUS_DEAD = "previous_dead"  # the old key no longer works: no restore
    BOTH_DEAD = "both_dead"
    FOREIGN_VERSION = "foreign_version"  # somebody else wrote the current key in Vault
    STATE_OLDER_THAN_WORLD = "state_older_than_world"  # a sequence at the target above the record's
    UNSUPPORTED = "unsupported"
    MISCONFIGURED = "misconfigured"
    DEADLINE = "deadline"
    GAVE_UP = "gave_up"  # the phase's budget is used up
    CONFIG_CHANGED = "config_changed"  # the connection's identity changed under an open rotation
    ROLLBACK_ASKED = "rollback_asked"
    CANCEL_ASKED = "cancel_asked"
    STILL_ALIVE = "still_alive"  # a key that should be dead is accepted
    DONE = "done"
