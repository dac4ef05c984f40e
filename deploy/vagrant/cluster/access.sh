# shellcheck shell=bash disable=SC2154 # cluster.sh sets the variables
# The tokens and rights of the cluster, and the job orch. A server that is provisioned while
# the servers have leaders makes them, and keeps what exists.

set_up() {
	local machine
	for machine in "${!agents[@]}"; do
		consul_token "${agents[$machine]}" "$(jq -cn --arg name "$machine" '{NodeIdentities: [{NodeName: $name, Datacenter: "dc1"}]}')" "agent of $machine"
	done
	consul_policies
	consul_token "$consul_nomad" '{"Policies": [{"Name": "nomad-agents"}]}' "nomad"
	prepare_unsealed
	prepare_vault

	export NOMAD_TOKEN=$nomad_management
	await "nomad's token" nomad_token
	await "nomad" nomad acl token self
	await "the leaders of Consul and Nomad" formed
	nomad_rights
	prepare_logins
	run_orch
}

# nomad_token: make the management token, unless it exists. While the servers elect a leader,
# as after a server was created again, it fails.
nomad_token() {
	nomad acl token self || nomad acl bootstrap - <<<"$nomad_management"
}

# consul_token SECRET RIGHTS DESCRIPTION: create a token that does not exist. The secrets are
# on no command line, because other users could read them there.
consul_token() {
	if curl -fsS --cacert "$CONSUL_CACERT" -H @<(echo "X-Consul-Token: $1") "$CONSUL_HTTP_ADDR/v1/acl/token/self" >/dev/null 2>&1; then return; fi
	secret=$1 jq -n --argjson rights "$2" --arg description "$3" '{SecretID: env.secret, Description: $description} + $rights' |
		curl -fsS --cacert "$CONSUL_CACERT" -H @<(echo "X-Consul-Token: $consul_management") -X PUT --data-binary @- \
			"$CONSUL_HTTP_ADDR/v1/acl/token" >/dev/null
}

unsealed() { vault status && [ -s /etc/orch/vault-init.json ]; }

# prepare_unsealed: initialise Vault, once. Its key and root token are then in Consul's KV
# store, where vault-unseal.service of each server finds them.
prepare_unsealed() {
	local init=/etc/orch/vault-init.json server state stored
	stored=$(consul kv get -keys vagrant/vault) # fails if Consul cannot tell
	if [ "$stored" != vagrant/vault ]; then
		await "vault" fetch "$VAULT_ADDR/v1/sys/init"
		# A run that ended between the next two commands has left the key there.
		! jq -e .root_token "$init.made" >/dev/null 2>&1 || mv "$init.made" "$init"
		if [ ! -s "$init" ]; then
			for server in "${servers[@]}"; do
				state=$(fetch "https://$server:8200/v1/sys/init" | jq .initialized) || state=
				case $state in
				false) ;;
				true)
					echo "Vault is initialised, but its key is not in Consul. Provision the server that has $init; if none has it, create all machines again." >&2
					return 1
					;;
				*)
					echo "The Vault at $server does not say whether it is initialised. Provision again when it runs." >&2
					return 1
					;;
				esac
			done
			# vault-unseal has another name for its temporary file.
			vault operator init -key-shares=1 -key-threshold=1 -format=json >"$init.made"
			mv "$init.made" "$init"
		fi
		consul kv put -cas -modify-index=0 vagrant/vault - <"$init" >/dev/null
	fi
	await "vault" unsealed
}

# put_items: write what the job orch needs, which run_orch has put together.
put_items() { jq '{Items: .}' <<<"$items" | nomad var put -force -in=json nomad/jobs/orch -; }

# run_orch: two replicas, each on a client, by the identity of their tasks.
run_orch() {
	local items engines
	items=$(
		database="postgres://orch:$database_password@${servers[0]}:5432/orch?sslmode=verify-full&sslrootcert=/etc/orch/tls/ca.pem" \
			key=$admin_key jq -cnS '{ORCH_ADMIN_KEY: env.key, ORCH_DATABASE_URL: env.database}'
	)
	if [ "$(nomad var get -out=json nomad/jobs/orch 2>/dev/null | jq -cS .Items)" != "$items" ]; then
		await "nomad" put_items # the servers may elect a leader just now
	fi
	engines='"ORCH_ENGINE_IMAGE" = "orch/reference-engine:1"'
	if [ "$engine_driver" != docker ]; then
		engines="\"ORCH_ENGINE_DRIVER\" = \"$engine_driver\", \"ORCH_ENGINE_BIN_DIR\" = \"/usr/local/lib/orch\", \"ORCH_ENGINE_IMAGE\" = \"reference-engine\""
	fi
	# DEPLOYED changes with the binary, so that Nomad replaces the replicas one at a time.
	# Any time may pass until the second client is created.
	await "nomad" nomad job run -detach -var progress_deadline=0s -var driver=raw_exec -var count=2 -var identity=true -var vault_role=orch -var tls_dir=/etc/orch/serve \
		-var consul_addr="$CONSUL_HTTP_ADDR" -var vault_addr=https://vault.internal:8200 -var "settings={
		\"CONSUL_CACERT\" = \"$CONSUL_CACERT\", \"VAULT_CACERT\" = \"$VAULT_CACERT\", \"ORCH_NOMAD_NAMESPACE\" = \"engines\",
		$engines, \"DEPLOYED\" = \"$(sha256sum /usr/local/bin/orch | cut -c 1-16)\" }" nomad-jobs/orch.nomad.hcl
}
