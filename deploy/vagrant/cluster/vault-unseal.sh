#!/bin/bash
# Unseal this server's Vault whenever it is sealed. Its key is in a file, or in Consul's KV
# store from when Vault was initialised, which is acceptable only for development.
set -uo pipefail
umask 077

vault=https://127.0.0.1:8200 ca=/etc/orch/tls/ca.pem init=/etc/orch/vault-init.json

# The secrets come from files, because other users could read them on a command line.
fetch_key() {
	curl -fsS --max-time 10 --cacert $ca -H @<(echo "X-Consul-Token: $(cat /etc/orch/consul-management)") \
		"https://127.0.0.1:8501/v1/kv/vagrant/vault?raw" >$init.fetched 2>/dev/null &&
		jq -e .root_token $init.fetched >/dev/null && mv $init.fetched $init
}

while sleep 2; do
	[ -s $init ] || fetch_key || { rm -f $init.fetched; continue; }
	# A Vault that has not joined the others yet is not initialised.
	curl -sS --max-time 10 --cacert $ca $vault/v1/sys/seal-status 2>/dev/null | jq -e '.initialized and .sealed' >/dev/null || continue
	jq '{key: .unseal_keys_b64[0]}' $init | curl -fsS --max-time 60 --cacert $ca -X PUT --data-binary @- $vault/v1/sys/unseal >/dev/null
done
