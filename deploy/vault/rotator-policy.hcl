# The least that the rotator needs in Vault or OpenBao, for the mount `secret` (KV version 2) and the prefix `rotator`.
# Replace both where yours differ:
#
#   bao policy write rotator rotator-policy.hcl
#
# A test runs a whole rotation's Vault work under this policy, then once more without each single capability, and expects
# that to fail. There is no `delete`, no `patch` and nothing outside the prefix but what stands at the end.

# --- keys -------------------------------------------------------------------------------------------------------------

# The current and previous keys, which consumers read. `create` is the first version ever, `update` every later one;
# `read` proves the old key and puts it back when a rotation is undone.
path "secret/data/rotator/keys/*" {
  capabilities = ["create", "update", "read"]
}

# Version numbers and limits of the same, without values: a key must not vanish because only a few versions are kept.
path "secret/metadata/rotator/keys/*" {
  capabilities = ["read"]
}

# The candidate, from the moment it is minted.
path "secret/data/rotator/staged/*" {
  capabilities = ["create", "update", "read"]
}

# Its newest version's number, also when that was destroyed: it fences off an instance that lost its rotation.
path "secret/metadata/rotator/staged/*" {
  capabilities = ["read"]
}

# A finished rotation leaves no copy of a key behind. `update` is how Vault names this; metadata stays.
path "secret/destroy/rotator/staged/*" {
  capabilities = ["update"]
}

# Where a person leaves a key that only a person can mint. The rotator reads it and destroys it; it never writes here.
# People need ["create", "update"] on secret/data/rotator/handoff/NAME, from a policy of their own.
path "secret/data/rotator/handoff/*" {
  capabilities = ["read"]
}

path "secret/metadata/rotator/handoff/*" {
  capabilities = ["read"]
}

path "secret/destroy/rotator/handoff/*" {
  capabilities = ["update"]
}

# --- state ------------------------------------------------------------------------------------------------------------

# The state record of each connection: the only truth about a rotation, written by check-and-set alone. No key is in it.
path "secret/data/rotator/state/*" {
  capabilities = ["create", "update", "read"]
}

# `update` sets cas_required when a record is first written, so that nobody overwrites it by a plain write. Without it the
# rotator still works; it then lacks that guard against other people's writes.
path "secret/metadata/rotator/state/*" {
  capabilities = ["update"]
}

# Which connections have a record.
path "secret/metadata/rotator/state/" {
  capabilities = ["list"]
}

# Heartbeats of the instances, by which they notice each other's death.
path "secret/data/rotator/instances/*" {
  capabilities = ["create", "update", "read"]
}

path "secret/metadata/rotator/instances/" {
  capabilities = ["list"]
}

# --- outside the prefix -----------------------------------------------------------------------------------------------

# The mount's own limits: how many versions it keeps, and whether it deletes them by itself. Without it the rotator
# judges by each secret's own limits.
path "secret/config" {
  capabilities = ["read"]
}

# Our own token: how long it lives, and longer. (Vault's `default` policy grants these three too.)
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

# Lets an error name the capability that is missing.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
