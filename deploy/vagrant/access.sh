# shellcheck shell=bash
# The certificates, tokens and rights of the one-machine stack, by the commands of
# docs/install-steps.md. Each function can be repeated: it keeps what exists.

tls=/etc/orch/tls
tokens=/etc/orch/tokens

make_certificates() {
	install -d -m 0700 "$tls" "$tokens"
	if [ ! -s "$tls/ca.pem" ]; then
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 3650 -subj "/CN=orch Vagrant CA" \
			-keyout "$tls/ca-key.pem" -out "$tls/ca.pem" 2>/dev/null
	fi
	certificate consul serverAuth,clientAuth server.dc1.consul
	certificate vault serverAuth vault
	certificate nomad serverAuth,clientAuth server.global.nomad client.global.nomad
}

# certificate NAME USAGE HOSTNAME...: issue NAME.pem and NAME-key.pem, for loopback, too.
certificate() {
	[ ! -s "$tls/$1.pem" ] || return 0
	local hosts
	hosts="IP:127.0.0.1, DNS:localhost$(printf ', DNS:%s' "${@:3}")"
	openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj "/CN=$1" -keyout "$tls/$1-key.pem" 2>/dev/null |
		openssl x509 -req -days 3650 -CA "$tls/ca.pem" -CAkey "$tls/ca-key.pem" -out "$tls/$1.pem" \
			-extfile <(printf 'subjectAltName = %s\nkeyUsage = digitalSignature\nextendedKeyUsage = %s\n' "$hosts" "$2") 2>/dev/null
}

# token NAME COMMAND...: store the token that COMMAND creates and prints as JSON.
token() {
	local file=$tokens/$1
	[ ! -s "$file" ] || return 0
	"${@:2}" | jq -r .SecretID >"$file.new"
	mv "$file.new" "$file"
}

# bootstrap PROGRAM: create its first management token, once it has a leader.
bootstrap() {
	local arguments=(acl bootstrap -json)
	[ "$1" != consul ] || arguments=(acl bootstrap -format=json)
	for _ in $(seq 60); do
		if "$1" "${arguments[@]}" 2>/dev/null; then return; fi
		sleep 1
	done
	"$1" "${arguments[@]}"
}

# consul_policy NAME RULES: create or replace a policy. RULES is a file.
consul_policy() {
	local verb=create
	if consul acl policy read -name="$1" >/dev/null 2>&1; then verb=update; fi
	consul acl policy $verb -name="$1" -rules=- <"$2" >/dev/null
}

# prepare_consul: create the tokens of the agents.
prepare_consul() {
	token consul bootstrap consul
	CONSUL_HTTP_TOKEN=$(cat "$tokens/consul")
	export CONSUL_HTTP_TOKEN
	await "consul" consul acl token read -self
	token consul-agent consul acl token create -description=agent -node-identity=orch:dc1 -format=json
	printf 'acl {\n  tokens {\n    agent = "%s"\n  }\n}\n' "$(cat "$tokens/consul-agent")" >/etc/orch/consul.d/tokens.hcl
	consul reload >/dev/null
	consul_policy nomad-agents <(
		cat <<-'END'
			agent_prefix ""   { policy = "read" }
			node_prefix ""    { policy = "read" }
			service_prefix "" { policy = "write" }
		END
	)
	consul_policy orch deploy/consul/orch.policy.hcl
	token consul-nomad consul acl token create -description=nomad -policy-name=nomad-agents -format=json
	printf 'consul {\n  token = "%s"\n}\n' "$(cat "$tokens/consul-nomad")" >/etc/orch/nomad.d/token.hcl
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

# prepare_nomad: create the namespace of engines, and give the job orch its rights.
prepare_nomad() {
	token nomad bootstrap nomad
	NOMAD_TOKEN=$(cat "$tokens/nomad")
	export NOMAD_TOKEN
	await "nomad" nomad acl token self
	nomad namespace apply deploy/nomad/engines.namespace.hcl
	nomad acl policy apply -namespace default -job orch orch-job deploy/nomad/orch.policy.hcl
}

# prepare_logins: let the identities of Nomad's workloads log in to Consul and Vault, which
# fetch Nomad's keys now. The roles and rules admit only engines, and the job orch.
prepare_logins() {
	local keys=$NOMAD_ADDR/.well-known/jwks.json method=(create -type=jwt) name
	if consul acl auth-method read -name=nomad-workloads >/dev/null 2>&1; then method=(update); fi
	jq -n --arg keys "$keys" --rawfile ca "$tls/ca.pem" '{
		JWKSURL: $keys, JWKSCACert: $ca, JWTSupportedAlgs: ["RS256"], BoundAudiences: ["consul.io"],
		ClaimMappings: {nomad_namespace: "nomad_namespace", nomad_job_id: "nomad_job_id", nomad_task: "nomad_task", nomad_service: "nomad_service"}
	}' | consul acl auth-method "${method[@]}" -name=nomad-workloads -config=- >/dev/null
	# shellcheck disable=SC2016 # Consul replaces it
	consul_rule service '${value.nomad_service}' '"nomad_service" in value'
	consul_rule policy orch "$(jq -r .Selector deploy/consul/orch.binding-rule.json)"

	vault auth list -format=json | jq -e '."jwt-nomad/"' >/dev/null || vault auth enable -path=jwt-nomad jwt
	vault write auth/jwt-nomad/config jwks_url="$keys" jwks_ca_pem=@"$tls/ca.pem" \
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
