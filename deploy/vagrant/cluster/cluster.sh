#!/usr/bin/env bash
# Install and start what a machine of the cluster runs; see README.md. It can be repeated at
# any time: what is as it should be stays as it is, and nothing is restarted.
#
#   cluster.sh CHECKOUT NAME
#
# NAME is in the file machines. /orch/secrets has what secrets.sh made for this machine. If
# /orch/programs has nomad, consul, vault, orch and reference-engine, these are installed;
# otherwise they are built here. With ORCH_ENGINE_DRIVER=raw_exec, engines are processes in
# place of containers.
set -euo pipefail
umask 077

root=$1 name=$2
cd "$root"
here=deploy/vagrant/cluster secrets=/orch/secrets programs=/orch/programs
engine_driver=${ORCH_ENGINE_DRIVER:-docker}

# shellcheck source=deploy/setup.sh
. deploy/setup.sh
# shellcheck source=deploy/vagrant/common.sh
. deploy/vagrant/common.sh
# shellcheck source=deploy/vagrant/cluster/install.sh
. "$here/install.sh"
# shellcheck source=deploy/vagrant/cluster/access.sh
. "$here/access.sh"

declare -A agents # the token of each machine's Consul agent; secrets has them on servers
consul_gossip='' consul_agent='' consul_nomad='' consul_node='' consul_management=''
nomad_gossip='' nomad_management='' admin_key='' database_password=''
# shellcheck source=/dev/null
. "$secrets/secrets"
address=$(awk -v name="$name" '$1 == name {print $2}' "$here/machines")
mapfile -t servers < <(awk '/^server/ {print $2}' "$here/machines")

# fetch URL: GET from an agent, which needs no token. It fails if nothing responds.
fetch() { curl -sS --max-time 10 --cacert "$CONSUL_CACERT" "$1" 2>/dev/null; }

# formed: this server knows a leader of Nomad and one of Consul.
formed() {
	fetch "$NOMAD_ADDR/v1/status/leader" | grep -q '^"[0-9]' &&
		fetch "$CONSUL_HTTP_ADDR/v1/status/leader" | grep -q '^"[0-9]'
}

# can_form: all servers respond, or one of them knows a leader, so that this one will, too.
can_form() {
	local server leader responding=0
	for server in "${servers[@]}"; do
		leader=$(fetch "https://$server:4646/v1/status/leader") || continue
		[[ $leader != '"'[0-9]* ]] || return 0
		responding=$((responding + 1))
	done
	[ "$responding" = "${#servers[@]}" ]
}

provision_server() {
	write_env
	install_consul consul-server.hcl
	install_vault
	install_nomad nomad-server.hcl
	[ "$name" != server1 ] || install_database
	await "nomad" fetch "$NOMAD_ADDR/v1/status/leader"
	if ! can_form; then
		echo "$name runs. It sets the cluster up when all of ${servers[*]} run: provision the others."
		return
	fi
	await "the leaders of Consul and Nomad" formed
	# One server at a time, because machines may be provisioned concurrently.
	export CONSUL_HTTP_TOKEN=$consul_management
	await "consul" consul acl token read -self
	consul lock -child-exit-code -shell=false vagrant/set-up bash "$here/cluster.sh" "$root" "$name" set-up
	echo "$name is a server of the cluster. sudo -i, then . /etc/orch/env (orch, nomad, consul, vault)"
}

provision_client() {
	install_consul
	install_engines
	install_nomad nomad-client.hcl
	if ! can_form; then
		echo "$name runs. It joins the servers by itself when all of ${servers[*]} run."
		return
	fi
	await "nomad" joined
	await "orch" ready
	echo "$name is a client of the cluster, and runs orch: https://$address:8000"
}

joined() { fetch "$NOMAD_ADDR/v1/agent/health" | jq -e .client.ok; }
ready() { curl -fsS --max-time 10 --cacert "$CONSUL_CACERT" "https://$address:8000/ready"; }

if [ "${3:-}" = set-up ]; then
	set_up
	exit
fi
install_programs
install_secrets
case $name in
server*) provision_server ;;
client*) provision_client ;;
esac
