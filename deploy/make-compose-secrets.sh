#!/bin/sh
# Makes what compose.yaml needs and nobody may share, once: a CA and OpenBao's certificate, the key that unseals
# OpenBao, the rotator's AppRole secret, Grafana's password and the HTTP API's tokens. Existing files are kept; to renew
# a token, remove it and api-tokens, which holds the tokens' digests.
# Keep a copy of openbao-seal.key: without it the stored keys can't be read again.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
cd secrets
echo '*' >.gitignore

random() { # 32 random bytes as 64 hex digits, without a newline: OpenBao takes the file as it is
    openssl rand -hex 32 | tr -d '\n'
}
once() { # once FILE COMMAND...: FILE from the command's output, unless it is there
    [ -s "$1" ] || {
        file=$1
        shift
        "$@" >"$file.new"
        mv "$file.new" "$file"
    }
}
digest() { # of a token, as the rotator's token file takes it
    printf 'sha256:%s' "$(openssl dgst -sha256 -r "$1" | cut -d ' ' -f 1)"
}
digests() {
    printf 'read %s\noperate %s\n' "$(digest prometheus-token)" "$(digest operate-token)"
}

if [ ! -s openbao.crt ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=rotator compose CA' \
        -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.pem 2>/dev/null
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=openbao -keyout openbao.key \
        -out openbao.csr 2>/dev/null
    # Python 3.13 refuses certificates that don't name the key they are signed with; older OpenSSL leaves it out
    printf '%s\n' 'subjectAltName=DNS:openbao,DNS:localhost,IP:127.0.0.1' extendedKeyUsage=serverAuth \
        subjectKeyIdentifier=hash authorityKeyIdentifier=keyid >openbao.ext
    openssl x509 -req -in openbao.csr -CA ca.pem -CAkey ca.key -days 825 -extfile openbao.ext -out openbao.crt 2>/dev/null
    rm openbao.csr openbao.ext ca.key # nothing else is ever signed
fi
once openbao-seal.key random
once approle-secret-id random
once grafana-admin-password random
once prometheus-token random
once operate-token random # yours, for calls of the HTTP API; no container gets it
once api-tokens digests
# Containers read the others as users of their own; the directory stays closed to everybody else on the host.
chmod 0644 ca.pem openbao.crt openbao.key openbao-seal.key approle-secret-id grafana-admin-password prometheus-token \
    api-tokens
