#!/usr/bin/env bash
# Install and start the whole stack on a Debian 12 machine; see the Vagrantfile. It can
# be repeated at any time: state, keys and engines are kept.
#
#   provision.sh CHECKOUT ADDRESS     ADDRESS: the address of the engines' ports
#
# The machine is for development only: Vault's unseal key, the management tokens and the key
# of the certificate authority are stored in /etc/orch, and orch serves plain HTTP.
set -euo pipefail

root=$1
address=$2
cd "$root"

# shellcheck source=deploy/setup.sh
. deploy/setup.sh
# shellcheck source=deploy/vagrant/common.sh
. deploy/vagrant/common.sh
# shellcheck source=deploy/vagrant/access.sh
. deploy/vagrant/access.sh

install_programs() {
	build_programs "$root"
	setup_packages docker.io jq openssl
	DOCKER_HOST=unix:///var/run/docker.sock make engine-image
}

nomad_ready() {
	local node
	node=$(nomad node status -self -json) && jq -e '.Status == "ready" and .Drivers.docker.Healthy' <<<"$node"
}

# Each agent needs a token of the one before it.
install_agents() {
	if [ -e /etc/orch/consul.hcl ]; then
		echo "This machine is from before its agents had access control. Remove it and create another: vagrant destroy, vagrant up" >&2
		return 1
	fi
	umask 077
	install -d -m 0700 /etc/orch /etc/orch/consul.d /etc/orch/nomad.d /var/lib/consul /var/lib/nomad /var/lib/vault
	install -m 0600 deploy/vagrant/consul.hcl /etc/orch/consul.d/
	install -m 0600 deploy/vagrant/vault.hcl /etc/orch/
	sed "s/ADDRESS/$address/" deploy/vagrant/nomad.hcl >/etc/orch/nomad.d/nomad.hcl
	make_certificates
	install -m 0755 deploy/vagrant/unseal.sh /usr/local/sbin/orch-unseal
	install -m 0644 deploy/vagrant/*.service /etc/systemd/system/
	systemctl daemon-reload
	systemctl enable -q consul vault nomad
	systemctl restart consul
	prepare_consul
	systemctl restart vault
	prepare_vault
	systemctl restart nomad
	prepare_nomad
	await "nomad" nomad_ready
	prepare_logins
}

# The file for those who work on the machine: sudo -i, then . /etc/orch/env
write_env() {
	cat >/etc/orch/env <<-END
		export NOMAD_ADDR=$NOMAD_ADDR NOMAD_CACERT=$NOMAD_CACERT NOMAD_TOKEN=$NOMAD_TOKEN
		export CONSUL_HTTP_ADDR=$CONSUL_HTTP_ADDR CONSUL_CACERT=$CONSUL_CACERT CONSUL_HTTP_TOKEN=$CONSUL_HTTP_TOKEN
		export VAULT_ADDR=$VAULT_ADDR VAULT_CACERT=$VAULT_CACERT VAULT_TOKEN=$VAULT_TOKEN
		export ORCH_URL=http://127.0.0.1:8000 ORCH_ADMIN_KEY=$(cat /etc/orch/admin-key)
	END
}

run_orch() {
	[ -s /etc/orch/admin-key ] || (umask 077 && openssl rand -hex 24 >/etc/orch/admin-key)
	jq -n --rawfile key /etc/orch/admin-key '{Items: {ORCH_ADMIN_KEY: ($key | rtrimstr("\n"))}}' |
		nomad var put -force -in=json nomad/jobs/orch - >/dev/null
	# orch listens on all addresses, because the forwarded port arrives on another one than
	# the engines'. The job allows plain HTTP there (tls_dir is not set); the host forwards
	# the port of its loopback alone. DEPLOYED changes with the binary, so that Nomad restarts
	# the job with it. The job has no token: it uses the identity of its task.
	nomad job run -var driver=raw_exec -var identity=true -var vault_role=orch \
		-var consul_addr="$CONSUL_HTTP_ADDR" -var vault_addr="$VAULT_ADDR" -var "settings={
		\"CONSUL_CACERT\" = \"$CONSUL_CACERT\", \"VAULT_CACERT\" = \"$VAULT_CACERT\",
		\"ORCH_ADDR\" = \":8000\", \"ORCH_NOMAD_NAMESPACE\" = \"engines\", \"ORCH_ENGINE_IMAGE\" = \"orch/reference-engine:1\",
		\"DEPLOYED\" = \"$(sha256sum /usr/local/bin/orch | cut -c 1-16)\" }" nomad-jobs/orch.nomad.hcl
	await "orch" curl -fsS http://127.0.0.1:8000/ready
}

install_programs
install_agents
run_orch
write_env
cat <<EOT

orch      http://127.0.0.1:8000     admin key: vagrant ssh -c 'sudo cat /etc/orch/admin-key'
engines   http://$address:PORT
commands  vagrant ssh, then sudo -i and . /etc/orch/env (orch, nomad, consul, vault)
web UIs   vagrant ssh -- -L 4646:127.0.0.1:4646 -L 8501:127.0.0.1:8501 -L 8200:127.0.0.1:8200
          $NOMAD_ADDR/ui  $CONSUL_HTTP_ADDR/ui  $VAULT_ADDR/ui
          The browser does not know their certificate authority; the tokens are in /etc/orch/env
EOT
