# OpenBao for compose.yaml: one node, keys on a volume, unsealed by a key from a file. At its first start it sets itself
# up for the rotator (KV version 2, AppRole, the least policy) and keeps no root token. Run your own Vault or OpenBao
# with several nodes and a real seal where provisioning must survive this machine.
ui           = false
api_addr     = "https://openbao:8200"
cluster_addr  = "https://openbao:8201"

storage "raft" {
  path    = "/openbao/file"
  node_id = "openbao"
}

listener "tcp" {
  address       = "0.0.0.0:8200"
  tls_cert_file = "/run/secrets/openbao.crt"
  tls_key_file  = "/run/secrets/openbao.key"
}

seal "static" {
  current_key_id = "compose-1"
  current_key    = "file:///run/secrets/openbao-seal.key"
}

initialize "rotator" {
  request "kv" {
    operation = "update"
    path      = "sys/mounts/secret"
    data      = { type = "kv", options = { version = "2" } }
  }
  request "policy" {
    operation = "update"
    path      = "sys/policies/acl/rotator"
    data = {
      policy = {
        eval_type   = "string"
        eval_source = "file"
        path        = "/openbao/policy/rotator-policy.hcl"
      }
    }
  }
  request "approle" {
    operation = "update"
    path      = "sys/auth/approle"
    data      = { type = "approle" }
  }
  request "role" {
    operation = "update"
    path      = "auth/approle/role/rotator"
    data = {
      role_id        = "rotator"
      token_policies = ["rotator"]
      token_ttl      = "1h"
      token_max_ttl  = "24h"
    }
  }
  request "secret-id" {
    operation = "update"
    path      = "auth/approle/role/rotator/custom-secret-id"
    data = {
      secret_id = {
        eval_type   = "string"
        eval_source = "file"
        path        = "/run/secrets/approle-secret-id"
      }
    }
  }
}
