#!/usr/bin/env bash
# Generates the pages of the Terraform provider from its schema and its examples:
#
#   tools/terraform-docs.sh [DIR]     terraform/provider/docs by default
#
# It needs terraform, which says what the schema is. tfplugindocs itself would download one.
set -euo pipefail
cd "$(dirname "$0")/../terraform/provider"

DOCS=github.com/hashicorp/terraform-plugin-docs/cmd/tfplugindocs@v0.25.0

to=${1:-docs}
case $to in
/*) ;;
*) to=$PWD/$to ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/bin" "$work/config" "$work/module"
go build -o "$work/bin/terraform-provider-orch" .
cat >"$work/cli.tfrc" <<EOF
provider_installation {
  dev_overrides { "septemberai/orch" = "$work/bin" }
}
EOF
cat >"$work/config/main.tf" <<EOF
terraform {
  required_providers {
    orch = { source = "septemberai/orch" }
  }
}
EOF
export CHECKPOINT_DISABLE=1
TF_CLI_CONFIG_FILE=$work/cli.tfrc terraform -chdir="$work/config" providers schema -json |
	# tfplugindocs looks for its providers by these names only.
	sed 's|"\([a-z.]*\)/septemberai/orch"|"\1/hashicorp/orch"|' >"$work/schema.json"

# In a copy, because it writes to the directory of the module.
cp -r examples "$work/module/"
GOWORK=off go run "$DOCS" generate --provider-dir "$work/module" --provider-name terraform-provider-orch \
	--rendered-provider-name orch --providers-schema "$work/schema.json" >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
rm -rf "$to"
cp -r "$work/module/docs" "$to"
