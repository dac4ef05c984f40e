# shellcheck shell=bash
# The certificates and tokens of the one-machine stack, by the commands of
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

# prepare_consul: create the tokens of the agents.
prepare_consul() {
	token consul bootstrap consul
	CONSUL_HTTP_TOKEN=$(cat "$tokens/consul")
	export CONSUL_HTTP_TOKEN
	await "consul" consul acl token read -self
	token consul-agent consul acl token create -description=agent -node-identity=orch:dc1 -format=json
	printf 'acl {\n  tokens {\n    agent = "%s"\n  }\n}\n' "$(cat "$tokens/consul-agent")" >/etc/orch/consul.d/tokens.hcl
	consul reload >/dev/null
	consul_policies
	token consul-nomad consul acl token create -description=nomad -policy-name=nomad-agents -format=json
	printf 'consul {\n  token = "%s"\n}\n' "$(cat "$tokens/consul-nomad")" >/etc/orch/nomad.d/token.hcl
}

# prepare_nomad: create the management token, the namespace of engines and the rights of orch.
prepare_nomad() {
	token nomad bootstrap nomad
	NOMAD_TOKEN=$(cat "$tokens/nomad")
	export NOMAD_TOKEN
	await "nomad" nomad acl token self
	nomad_rights
}
