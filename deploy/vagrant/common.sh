# shellcheck shell=bash
# What the one machine (provision.sh) and the machines of the cluster (cluster/cluster.sh)
# have in common. Each function can be repeated: it keeps what exists.

export HOME="${HOME:-$(getent passwd 0 | cut -d: -f6)}"
export XDG_CACHE_HOME=/var/cache
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0="*"
export NOMAD_ADDR=https://127.0.0.1:4646 CONSUL_HTTP_ADDR=https://127.0.0.1:8501 VAULT_ADDR=https://127.0.0.1:8200
export NOMAD_CACERT=/etc/orch/tls/ca.pem CONSUL_CACERT=/etc/orch/tls/ca.pem VAULT_CACERT=/etc/orch/tls/ca.pem

# await WHAT COMMAND...: repeat COMMAND until it succeeds, for five minutes. WHAT is its
# name in the error.
await() {
	local what=$1 until=$((SECONDS + 300))
	shift
	while [ "$SECONDS" -lt "$until" ]; do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.5
	done
	echo "$what is not ready after five minutes; the last attempt:" >&2
	"$@"
}

# build_programs CHECKOUT: build orch, and find or build the agents.
build_programs() {
	setup_build "$1"
	# The programs are links into the cache, which stay as they are until others are built.
	# `make tools` must not see them: it would take them for an installation of another kind.
	local name path hidden=:$PATH:
	hidden=${hidden//:\/usr\/local\/bin:/:}
	PATH=${hidden:1:-1} make tools
	PATH=${hidden:1:-1} bin/orch-dev tools 2>/dev/null | while read -r name path; do
		ln -sfn "$path" "/usr/local/bin/$name"
	done
	install -m 0755 bin/orch /usr/local/bin/orch
}

# consul_policy NAME RULES: create or replace a policy. RULES is a file.
consul_policy() {
	local verb=create
	if consul acl policy read -name="$1" >/dev/null 2>&1; then verb=update; fi
	consul acl policy $verb -name="$1" -rules=- <"$2" >/dev/null
}

# consul_policies: create or replace the policies of Nomad's agents and of orch.
consul_policies() {
	consul_policy nomad-agents <(
		cat <<-'END'
			agent_prefix ""   { policy = "read" }
			node_prefix ""    { policy = "read" }
			service_prefix "" { policy = "write" }
		END
	)
	consul_policy orch deploy/consul/orch.policy.hcl
}

# prepare_vault: create the mount of orch, and write the policies.
prepare_vault() {
	local name
	VAULT_TOKEN=$(jq -r .root_token /etc/orch/vault-init.json)
	export VAULT_TOKEN
	await "vault" vault secrets list
	vault secrets list -format=json | jq -e '."orch/"' >/dev/null || vault secrets enable -path=orch -version=2 kv
	for name in orch nomad-workloads; do
		vault policy write "$name" "deploy/vault/$name.policy.hcl"
	done
}

# nomad_rights: create the namespace of engines, and give the job orch its rights.
nomad_rights() {
	nomad namespace apply deploy/nomad/engines.namespace.hcl
	nomad acl policy apply -namespace default -job orch orch-job deploy/nomad/orch.policy.hcl
}

# prepare_logins: let the identities of Nomad's workloads log in to Consul and Vault, which
# fetch Nomad's keys now. The roles and rules admit only engines, and the job orch.
prepare_logins() {
	local keys=$NOMAD_ADDR/.well-known/jwks.json method=(create -type=jwt) name
	if consul acl auth-method read -name=nomad-workloads >/dev/null 2>&1; then method=(update); fi
	jq -n --arg keys "$keys" --rawfile ca "$CONSUL_CACERT" '{
		JWKSURL: $keys, JWKSCACert: $ca, JWTSupportedAlgs: ["RS256"], BoundAudiences: ["consul.io"],
		ClaimMappings: {nomad_namespace: "nomad_namespace", nomad_job_id: "nomad_job_id", nomad_task: "nomad_task", nomad_service: "nomad_service"}
	}' | consul acl auth-method "${method[@]}" -name=nomad-workloads -config=- >/dev/null
	# shellcheck disable=SC2016 # Consul replaces it
	consul_rule service '${value.nomad_service}' '"nomad_service" in value'
	consul_rule policy orch "$(jq -r .Selector deploy/consul/orch.binding-rule.json)"

	vault auth list -format=json | jq -e '."jwt-nomad/"' >/dev/null || vault auth enable -path=jwt-nomad jwt
	vault write auth/jwt-nomad/config jwks_url="$keys" jwks_ca_pem=@"$VAULT_CACERT" \
		jwt_supported_algs=RS256,EdDSA default_role=nomad-workloads
	for name in nomad-workloads orch; do
		vault write "auth/jwt-nomad/role/$name" "@deploy/vault/$name.role.json"
	done
}

# consul_rule TYPE NAME SELECTOR: bind identities to a service or a policy, unless they are.
consul_rule() {
	if ! consul acl binding-rule list -method=nomad-workloads -format=json |
		jq -e --arg name "$2" --arg selector "$3" 'any(.[]; .BindName == $name and .Selector == $selector)' >/dev/null; then
		consul acl binding-rule create -method=nomad-workloads -bind-type="$1" -bind-name="$2" -selector="$3" >/dev/null
	fi
}
