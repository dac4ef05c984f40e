package terraform

import (
	"reflect"
	"testing"
)

// wrap makes the results of the clients' lists one type.
func wrap[T, M any](list T, meta M, err error) (any, M, error) { return list, meta, err }

// namesOf returns a field of each item of a list.
func namesOf(t *testing.T, list any, field string) (names []string) {
	t.Helper()
	items := reflect.ValueOf(list)
	for i := range items.Len() {
		names = append(names, reflect.Indirect(items.Index(i)).FieldByName(field).String())
	}
	return names
}
