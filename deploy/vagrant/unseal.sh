#!/bin/sh
# Unseal Vault after each start, and initialise it at the first. The single key share is
# in a file, which is acceptable only on a machine for development.
set -eu

export VAULT_ADDR=https://127.0.0.1:8200 VAULT_CACERT=/etc/orch/tls/ca.pem
init=/etc/orch/vault-init.json

n=60
while :; do
	code=0
	vault status >/dev/null 2>&1 || code=$? # 2: it responds and is sealed
	case $code in 0) exit 0 ;; 2) break ;; esac
	n=$((n - 1))
	[ $n -gt 0 ] || { echo "vault does not respond" >&2; exit 1; }
	sleep 0.5
done
# A run that ended between the two commands below has left the key there.
! jq -e .root_token $init.new >/dev/null 2>&1 || mv $init.new $init
if [ ! -s $init ]; then
	umask 077
	vault operator init -key-shares=1 -key-threshold=1 -format=json >$init.new
	mv $init.new $init
fi
# The key comes from a file, because other users could read it on a command line.
jq '{key: .unseal_keys_b64[0]}' $init | curl -fsS --cacert $VAULT_CACERT -X PUT --data-binary @- $VAULT_ADDR/v1/sys/unseal >/dev/null
