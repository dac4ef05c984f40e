#!/usr/bin/env bash
# Make the certificates, keys and tokens of the machines, on the host of the machines. It
# can be repeated: it keeps what exists.
#
#   secrets.sh DIR
#
# DIR/NAME is for the machine NAME, and has nothing that is for another one. The key of the
# certificate authority is in DIR/authority, and is on no machine.
set -euo pipefail
shopt -s inherit_errexit
umask 077

dir=$1
machines=$(cd "$(dirname "$0")" && pwd)/machines
mkdir -p "$dir/authority"
chmod 0700 "$dir"
cd "$dir"
# Vagrant may create machines concurrently.
exec 9>lock
if command -v flock >/dev/null; then flock 9; fi

# secret NAME COMMAND...: print the secret NAME, which COMMAND makes the first time.
secret() {
	local file=authority/$1
	if [ ! -s "$file" ]; then
		"${@:2}" >"$file.new" && [ -s "$file.new" ] || return 1
		mv "$file.new" "$file"
	fi
	cat "$file"
}

uuid() { openssl rand -hex 16 | sed -E 's/^(.{8})(.{4})(.{4})(.{4})/\1-\2-\3-\4-/'; }

# certificate FILE USAGE NAMES: issue FILE.pem and FILE-key.pem. USAGE and NAMES are as in
# the extensions of OpenSSL.
certificate() {
	[ ! -s "$1.pem" ] || return 0
	printf 'subjectAltName = %s\nkeyUsage = digitalSignature\nextendedKeyUsage = %s\n' "$3" "$2" >authority/extensions
	openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$(basename "$1")" \
		-keyout "$1-key.pem" -out authority/request 2>/dev/null
	openssl x509 -req -days 3650 -in authority/request -CA ca.pem -CAkey authority/ca-key.pem -set_serial "0x1$(openssl rand -hex 8)" \
		-extfile authority/extensions -out "$1.pem.new" 2>/dev/null
	mv "$1.pem.new" "$1.pem"
	rm authority/extensions authority/request
}

# line VARIABLE SECRET COMMAND...: print an assignment of a secret.
line() {
	local value
	value=$(secret "${@:2}")
	echo "$1=$value"
}

# for_server: what servers have in addition.
for_server() {
	local name _
	line nomad_gossip nomad-gossip openssl rand -base64 32
	line consul_management consul-management uuid
	line nomad_management nomad-management uuid
	line admin_key admin-key openssl rand -hex 24
	line database_password database-password openssl rand -hex 24
	while read -r name _; do
		line "agents[$name]" "consul-agent-$name" uuid
	done <"$machines"
}

if [ ! -s ca.pem ]; then
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=orch Vagrant CA" \
		-keyout authority/ca-key.pem -out ca.pem.new 2>/dev/null
	mv ca.pem.new ca.pem
fi

while read -r name address; do
	mkdir -p "$name"
	hosts="IP:$address, IP:127.0.0.1, DNS:$name, DNS:localhost"
	case $name in
	server*)
		certificate "$name/consul" serverAuth,clientAuth "$hosts, DNS:server.dc1.consul"
		certificate "$name/nomad" serverAuth,clientAuth "$hosts, DNS:server.global.nomad"
		certificate "$name/vault" serverAuth,clientAuth "$hosts, DNS:vault.internal"
		[ "$name" != server1 ] || certificate "$name/postgres" serverAuth "$hosts"
		;;
	client*)
		certificate "$name/consul" serverAuth,clientAuth "$hosts"
		certificate "$name/nomad" serverAuth,clientAuth "$hosts, DNS:client.global.nomad"
		certificate "$name/orch" serverAuth "$hosts"
		;;
	esac
	cp ca.pem "$name/ca.pem"
	{
		line consul_gossip consul-gossip openssl rand -base64 32
		line consul_agent "consul-agent-$name" uuid
		line consul_nomad consul-nomad uuid
		case $name in
		server*) for_server ;;
		client*) line consul_node "consul-node-$name" uuid ;;
		esac
	} >"$name/secrets.new"
	mv "$name/secrets.new" "$name/secrets"
done <"$machines"
cp authority/admin-key admin-key
