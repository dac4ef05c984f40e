package main

// kind is a kind of resource that is one object of the agent's API.
type kind struct {
	name   string
	fields []field
	blocks []block
	// The paths of the API. {name} is the value of an argument, {id} the id.
	create, object string
	// id is the field of the created object that is the id in Terraform; empty: there is
	// none, and the argument identity is.
	id, identity string
}

// field is an argument of a resource, and a field of the object.
type field struct {
	name, api string // api empty: only in Terraform
	typ       fieldType
	required  bool
	replace   bool // a change is another object
	writeOnly bool
	preset    string // default
}

type fieldType int

const (
	text fieldType = iota
	number
	list     // of texts
	jsonText // an object in the API. Fields that the text does not have are ignored
)

// block is a block of a resource, at most one, and an object in the object.
type block struct {
	name, api string
	fields    []field
}

// providers lists the kinds of both providers. The names, and which are required, are from
// the documentation of HashiCorp's providers.
var providers = map[string][]kind{
	"nomad": {
		{
			name: "nomad_namespace", create: "/v1/namespace", object: "/v1/namespace/{name}", identity: "name",
			fields: []field{{name: "name", api: "Name", required: true, replace: true}, {name: "description", api: "Description"}},
			blocks: []block{{name: "capabilities", api: "Capabilities", fields: []field{
				{name: "enabled_task_drivers", api: "EnabledTaskDrivers", typ: list}, {name: "disabled_task_drivers", api: "DisabledTaskDrivers", typ: list},
			}}},
		},
		{
			name: "nomad_node_pool", create: "/v1/node/pool/{name}", object: "/v1/node/pool/{name}", identity: "name",
			fields: []field{{name: "name", api: "Name", required: true, replace: true}, {name: "description", api: "Description"}},
		},
		{
			name: "nomad_acl_policy", create: "/v1/acl/policy/{name}", object: "/v1/acl/policy/{name}", identity: "name",
			fields: []field{
				{name: "name", api: "Name", required: true, replace: true}, {name: "description", api: "Description"}, {name: "rules_hcl", api: "Rules", required: true},
			},
			blocks: []block{{name: "job_acl", api: "JobACL", fields: []field{
				{name: "namespace", api: "Namespace"}, {name: "job_id", api: "JobID"}, {name: "group", api: "Group"}, {name: "task", api: "Task"},
			}}},
		},
		{
			name: "nomad_variable", create: "/v1/var/{path}?namespace={namespace}", object: "/v1/var/{path}?namespace={namespace}", identity: "path",
			fields: []field{
				{name: "path", api: "Path", required: true, replace: true}, {name: "namespace", api: "Namespace", replace: true, preset: "default"},
				{name: "items_wo", api: "Items", typ: jsonText, writeOnly: true}, {name: "items_wo_version", typ: number},
			},
		},
	},
	"consul": {
		{
			name: "consul_acl_policy", create: "/v1/acl/policy", object: "/v1/acl/policy/{id}", id: "ID",
			fields: []field{{name: "name", api: "Name", required: true, replace: true}, {name: "description", api: "Description"}, {name: "rules", api: "Rules", required: true}},
		},
		{
			name: "consul_acl_auth_method", create: "/v1/acl/auth-method", object: "/v1/acl/auth-method/{name}", identity: "name",
			fields: []field{
				{name: "name", api: "Name", required: true, replace: true}, {name: "type", api: "Type", required: true, replace: true},
				{name: "description", api: "Description"}, {name: "config_json", api: "Config", typ: jsonText},
			},
		},
		{
			name: "consul_acl_binding_rule", create: "/v1/acl/binding-rule", object: "/v1/acl/binding-rule/{id}", id: "ID",
			fields: []field{
				{name: "auth_method", api: "AuthMethod", required: true, replace: true}, {name: "description", api: "Description"},
				{name: "bind_type", api: "BindType", required: true}, {name: "bind_name", api: "BindName", required: true}, {name: "selector", api: "Selector"},
			},
		},
	},
}
