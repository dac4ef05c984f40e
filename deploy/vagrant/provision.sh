#!/usr/bin/env bash
# Install and start the whole stack on a Debian 12 machine; see the Vagrantfile. It can
# be repeated at any time: state, keys and engines are kept.
#
#   provision.sh CHECKOUT ADDRESS     ADDRESS: the address of the engines' ports
#
# The machine is for development only: the agents have no access control, Vault's unseal
# key is stored in /etc/orch, and connections are not encrypted.
set -euo pipefail

root=$1
address=$2
cd "$root"

export HOME="${HOME:-$(getent passwd 0 | cut -d: -f6)}"
export XDG_CACHE_HOME=/var/cache
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0="*"
export NOMAD_ADDR=http://127.0.0.1:4646 CONSUL_HTTP_ADDR=http://127.0.0.1:8500 VAULT_ADDR=http://127.0.0.1:8200

# shellcheck source=deploy/setup.sh
. deploy/setup.sh

# await WHAT COMMAND...: repeat COMMAND until it succeeds, for a minute. WHAT is its name
# in the error.
await() {
	local what=$1
	shift
	for _ in $(seq 120); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.5
	done
	echo "$what is not ready after a minute; the last attempt:" >&2
	"$@"
}

install_programs() {
	setup_build "$root"
	setup_packages docker.io jq openssl
	# The programs are links into the cache. The old links are removed first, because
	# `make tools` would take them for an installation that is new enough.
	rm -f /usr/local/bin/nomad /usr/local/bin/consul /usr/local/bin/vault
	make tools
	local name path
	bin/orch-dev tools 2>/dev/null | while read -r name path; do
		ln -s "$path" "/usr/local/bin/$name"
	done
	install -m 0755 bin/orch /usr/local/bin/orch
	DOCKER_HOST=unix:///var/run/docker.sock make engine-image
}

nomad_ready() {
	local node
	node=$(nomad node status -self -json) && jq -e '.Status == "ready" and .Drivers.docker.Healthy' <<<"$node"
}

install_agents() {
	install -d -m 0700 /etc/orch /var/lib/consul /var/lib/nomad /var/lib/vault
	install -m 0600 deploy/vagrant/consul.hcl deploy/vagrant/vault.hcl /etc/orch/
	sed "s/ADDRESS/$address/" deploy/vagrant/nomad.hcl >/etc/orch/nomad.hcl
	install -m 0755 deploy/vagrant/unseal.sh /usr/local/sbin/orch-unseal
	install -m 0644 deploy/vagrant/*.service /etc/systemd/system/
	systemctl daemon-reload
	systemctl enable -q consul vault nomad
	systemctl restart consul vault nomad
	await "consul" consul kv get -recurse orch-no-such-key/
	await "vault" vault status
	await "nomad" nomad_ready
}

# Write what the service and the engines may do in Vault, and how Nomad's workload
# identities log in.
prepare_vault() {
	local name
	VAULT_TOKEN=$(jq -r .root_token /etc/orch/vault-init.json)
	export VAULT_TOKEN
	vault secrets list -format=json | jq -e '."orch/"' >/dev/null || vault secrets enable -path=orch -version=2 kv
	vault auth list -format=json | jq -e '."jwt-nomad/"' >/dev/null || vault auth enable -path=jwt-nomad jwt
	for name in orch nomad-workloads; do
		vault policy write "$name" "deploy/vault/$name.policy.hcl"
	done
	vault write auth/jwt-nomad/config jwks_url="$NOMAD_ADDR/.well-known/jwks.json" \
		jwt_supported_algs=RS256,EdDSA default_role=nomad-workloads
	# The role accepts only jobs of engines, in their namespace (ORCH_NOMAD_NAMESPACE),
	# because any other job that could log in with it could read the provider keys. All
	# engines share one entity in Vault, because the user claim is the namespace, not the
	# job.
	vault write auth/jwt-nomad/role/nomad-workloads @deploy/vault/nomad-workloads.role.json
	vault write auth/jwt-nomad/role/orch @deploy/vault/orch.role.json
	unset VAULT_TOKEN
}

run_orch() {
	[ -s /etc/orch/admin-key ] || (umask 077 && openssl rand -hex 24 >/etc/orch/admin-key)
	jq -n --rawfile key /etc/orch/admin-key '{Items: {ORCH_ADMIN_KEY: ($key | rtrimstr("\n"))}}' |
		nomad var put -force -in=json nomad/jobs/orch - >/dev/null
	# orch listens on all addresses, because the forwarded port arrives on another one than
	# the engines'. The job allows plain HTTP there (tls_dir is not set); the host forwards
	# the port of its loopback alone. DEPLOYED changes with the binary, so that Nomad restarts the job with it.
	nomad namespace apply deploy/nomad/engines.namespace.hcl >/dev/null
	nomad job run -var driver=raw_exec -var vault_role=orch -var "settings={
		\"ORCH_ADDR\" = \":8000\", \"ORCH_NOMAD_NAMESPACE\" = \"engines\", \"ORCH_ALLOW_OPEN_NOMAD\" = \"true\", \"ORCH_ENGINE_IMAGE\" = \"orch/reference-engine:1\",
		\"DEPLOYED\" = \"$(sha256sum /usr/local/bin/orch | cut -c 1-16)\" }" nomad-jobs/orch.nomad.hcl
	await "orch" curl -fsS http://127.0.0.1:8000/ready
}

install_programs
install_agents
prepare_vault
run_orch
cat <<EOT

orch    http://127.0.0.1:8000     admin key: vagrant ssh -c 'sudo cat /etc/orch/admin-key'
nomad   $NOMAD_ADDR/ui
consul  $CONSUL_HTTP_ADDR/ui
vault   $VAULT_ADDR/ui  root token: vagrant ssh -c 'sudo jq -r .root_token /etc/orch/vault-init.json'
engines http://$address:PORT
EOT
