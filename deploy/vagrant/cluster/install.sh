# shellcheck shell=bash disable=SC2154 # cluster.sh sets the variables
# Files, units and programs of a machine of the cluster.

# Files in this directory name the services that have to be restarted, also if this run ends
# before it does that.
changes=/var/lib/orch-vagrant

# put SERVICE MODE FILE: write FILE with what is read, if it differs. SERVICE is - if nothing
# has to be restarted then.
put() {
	local text
	text=$(cat && echo .) # with its last line breaks
	text=${text%.}
	if [ -e "$3" ] && printf %s "$text" | cmp -s - "$3"; then return; fi
	if [ "$1" != - ]; then : >"$changes/$1.changed"; fi
	[ -d "$(dirname "$3")" ] || install -d -m 0755 "$(dirname "$3")"
	printf %s "$text" | install -m "$2" /dev/stdin "$3.new"
	mv "$3.new" "$3"
}

# run SERVICE: start it, and restart it if one of its files changed.
run() {
	[ ! -e "$changes/$1.changed" ] || systemctl daemon-reload
	systemctl enable -q "$1"
	if [ -e "$changes/$1.changed" ] && systemctl is-active -q "$1"; then
		systemctl restart "$1"
	else
		systemctl start "$1"
	fi
	rm -f "$changes/$1.changed"
}

install_programs() {
	local program packages=(ca-certificates curl iproute2 jq openssl)
	install -d "$changes"
	case $name in
	server1) packages+=(postgresql) ;;
	client*)
		packages+=(nftables)
		[ "$engine_driver" != docker ] || packages+=(docker.io)
		;;
	esac
	setup_packages "${packages[@]}"
	if [ -e "$programs/nomad" ]; then
		for program in nomad consul vault orch; do
			ln -sfn "$programs/$program" "/usr/local/bin/$program"
		done
	else
		build_programs "$root"
	fi
	# Another program at the end of a link is another version.
	for program in nomad consul vault; do
		stat -c '%n %s %Y' "$(readlink -f "/usr/local/bin/$program")" | put "$program" 0644 "$changes/$program.version"
	done
}

# install_secrets: the certificates, and the names of the machines.
install_secrets() {
	local program server
	install -d -m 0700 /etc/orch
	put - 0600 /etc/orch/tls/ca.pem <"$secrets/ca.pem"
	for program in consul nomad vault; do
		[ -e "$secrets/$program.pem" ] || continue # clients have no Vault
		put "$program" 0600 "/etc/orch/tls/$program.pem" <"$secrets/$program.pem"
		put "$program" 0600 "/etc/orch/tls/$program-key.pem" <"$secrets/$program-key.pem"
	done
	{
		sed '/ # orch$/d' /etc/hosts
		awk '{print $2, $1, "# orch"}' "$here/machines"
		for server in "${servers[@]}"; do echo "$server vault.internal # orch"; done
	} | put - 0644 /etc/hosts
}

# list ADDRESS...: a list in HCL.
list() { jq -cn '$ARGS.positional' --args "$@"; }

# install_consul FILE...: Consul, with these files in addition.
install_consul() {
	local file
	install -d -m 0700 /var/lib/consul
	for file in consul.hcl "$@"; do
		put consul 0600 "/etc/orch/consul.d/$file" <"$here/$file"
	done
	put consul 0600 /etc/orch/consul.d/machine.hcl <<-END
		node_name      = "$name"
		bind_addr      = "$address"
		encrypt        = "$consul_gossip"
		retry_join     = $(list "${servers[@]}")
		retry_interval = "2s"
		$([ -z "$consul_node" ] || echo "node_id = \"$consul_node\" # a machine that is created again is the same node")

		acl {
		  tokens {
		    agent = "$consul_agent"
		    $([ -z "$consul_management" ] || echo "initial_management = \"$consul_management\"")
		  }
		}
	END
	put consul 0644 /etc/systemd/system/consul.service <deploy/vagrant/consul.service
	run consul
}

# install_vault: a server of Vault, and what unseals it.
install_vault() {
	local server
	install -d -m 0700 /var/lib/vault
	put vault 0600 /etc/orch/vault.hcl <<-END
		storage "raft" {
		  path    = "/var/lib/vault"
		  node_id = "$name"
		$(for server in "${servers[@]}"; do
			[ "$server" = "$address" ] || printf '  retry_join {\n    leader_api_addr     = "https://%s:8200"\n    leader_ca_cert_file = "/etc/orch/tls/ca.pem"\n  }\n' "$server"
		done)
		}

		listener "tcp" {
		  address         = "$address:8200"
		  cluster_address = "$address:8201"
		  tls_cert_file   = "/etc/orch/tls/vault.pem"
		  tls_key_file    = "/etc/orch/tls/vault-key.pem"
		}

		listener "tcp" {
		  address         = "127.0.0.1:8200"
		  cluster_address = "127.0.0.1:8201"
		  tls_cert_file   = "/etc/orch/tls/vault.pem"
		  tls_key_file    = "/etc/orch/tls/vault-key.pem"
		}

		api_addr      = "https://$address:8200"
		cluster_addr  = "https://$address:8201"
		disable_mlock = true
		ui            = true
		log_level     = "warn"
	END
	put vault 0644 /etc/systemd/system/vault.service < <(sed '/^ExecStartPost=/d' deploy/vagrant/vault.service)
	run vault
	put vault-unseal 0600 /etc/orch/consul-management <<<"$consul_management"
	put vault-unseal 0755 /usr/local/sbin/vault-unseal <"$here/vault-unseal.sh"
	put vault-unseal 0644 /etc/systemd/system/vault-unseal.service <"$here/vault-unseal.service"
	run vault-unseal
}

# install_nomad FILE: Nomad, with the file of a server or a client.
install_nomad() {
	local file join
	install -d -m 0700 /var/lib/nomad
	for file in nomad.hcl "$1"; do
		put nomad 0600 "/etc/orch/nomad.d/$file" <"$here/$file"
	done
	join="server_join {
		    retry_join     = $(list "${servers[@]}")
		    retry_interval = \"2s\"
		  }"
	put nomad 0600 /etc/orch/nomad.d/machine.hcl <<-END
		name      = "$name"
		bind_addr = "$address"

		addresses {
		  http = "127.0.0.1 $address"
		}

		advertise {
		  http = "$address"
		  rpc  = "$address"
		  serf = "$address"
		}

		consul {
		  token = "$consul_nomad"
		}

		$(case $1 in
		nomad-server.hcl) printf 'server {\n  encrypt = "%s"\n\n  %s\n}\n' "$nomad_gossip" "$join" ;;
		nomad-client.hcl) printf 'client {\n  network_interface = "%s"\n\n  %s\n}\n' "$(interface)" "$join" ;;
		esac)
	END
	put nomad 0644 /etc/systemd/system/nomad.service <deploy/vagrant/nomad.service
	run nomad
}

# interface: the name of the one that has this machine's address.
interface() { ip -json address show | jq -r --arg address "$address" '.[] | select(any(.addr_info[]; .local == $address)) | .ifname'; }

# install_engines: what engines and orch need on a client, before Nomad looks for it.
install_engines() {
	put - 0600 /etc/orch/serve/tls.crt <"$secrets/orch.pem"
	put - 0600 /etc/orch/serve/tls.key <"$secrets/orch-key.pem"
	put orch-firewall 0644 /etc/orch/engines.nft < <(sed 's|elements = { 10.0.0.0/24 }|elements = { 192.168.56.0/24 }|' deploy/nftables/engines.nft)
	put orch-firewall 0644 /etc/systemd/system/orch-firewall.service <"$here/orch-firewall.service"
	if [ "$engine_driver" = docker ]; then
		put orch-firewall 0644 /etc/systemd/system/orch-firewall.service.d/bridge.conf <<-'END'
			# Otherwise the firewall does not see what one container sends to another.
			[Service]
			ExecStartPre=modprobe br_netfilter
			ExecStartPre=sysctl -q -w net.bridge.bridge-nf-call-iptables=1
		END
		if [ -e "$programs/nomad" ]; then
			REFERENCE_ENGINE=$programs/reference-engine cmd/reference-engine/build-image.sh orch/reference-engine:1
		else
			cmd/reference-engine/build-image.sh orch/reference-engine:1
		fi
	else
		install -d -m 0755 /usr/local/lib/orch
		ln -sfn "$programs/reference-engine" /usr/local/lib/orch/reference-engine
		[ -e "$programs/nomad" ] || ln -sfn "$root/bin/reference-engine" /usr/local/lib/orch/reference-engine
	fi
	run orch-firewall
}

# install_database: PostgreSQL, for the audit log of two replicas of orch.
install_database() {
	local etc
	etc=$(echo /etc/postgresql/*/main)
	put postgresql 0640 "$etc/orch.crt" <"$secrets/postgres.pem"
	put postgresql 0640 "$etc/orch.key" <"$secrets/postgres-key.pem"
	chgrp postgres "$etc/orch.crt" "$etc/orch.key"
	put postgresql 0644 "$etc/conf.d/orch.conf" <<-END
		listen_addresses = 'localhost, $address'
		ssl = on
		ssl_cert_file = '$etc/orch.crt'
		ssl_key_file = '$etc/orch.key'
	END
	put postgresql 0640 "$etc/pg_hba.conf" < <(
		sed '/ # orch$/d' "$etc/pg_hba.conf"
		awk '/^client/ {print "hostssl orch orch", $2 "/32 scram-sha-256 # orch"}' "$here/machines"
	)
	chown postgres:postgres "$etc/pg_hba.conf"
	run postgresql
	await "postgresql" database -c 'SELECT 1'
	if [ -z "$(database -c "SELECT 1 FROM pg_roles WHERE rolname = 'orch'")" ]; then
		database <<<"CREATE ROLE orch LOGIN PASSWORD '$database_password'"
	fi
	if [ -z "$(database -c "SELECT 1 FROM pg_database WHERE datname = 'orch'")" ]; then
		database -c "CREATE DATABASE orch OWNER orch"
	fi
}

# database ARGUMENT...: psql as the superuser.
database() { (cd / && runuser -u postgres -- psql -X -q -t -A -v ON_ERROR_STOP=1 "$@"); }

# write_env: for those who work on a server: sudo -i, then . /etc/orch/env
write_env() {
	put - 0600 /etc/orch/env <<-END
		export NOMAD_ADDR=$NOMAD_ADDR NOMAD_CACERT=$NOMAD_CACERT NOMAD_TOKEN=$nomad_management
		export CONSUL_HTTP_ADDR=$CONSUL_HTTP_ADDR CONSUL_CACERT=$CONSUL_CACERT CONSUL_HTTP_TOKEN=$consul_management
		export VAULT_ADDR=$VAULT_ADDR VAULT_CACERT=$VAULT_CACERT VAULT_TOKEN=\$(jq -r .root_token /etc/orch/vault-init.json)
		export ORCH_URL=https://$(awk '$1 == "client1" {print $2}' "$here/machines"):8000 ORCH_CACERT=$CONSUL_CACERT ORCH_ADMIN_KEY=$admin_key
	END
}
