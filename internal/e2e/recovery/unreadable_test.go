package recovery

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestUnreadableProduct damages the record of a product whose witness in Vault is missing:
// every call of the product reports that, and no other product is affected.
func TestUnreadableProduct(t *testing.T) {
	t.Parallel()
	d := newDamage(t, "unreadable-product/", map[string]string{"ORCH_VOLUME_POOL": "2"})
	ctx := t.Context()
	kv, key := d.s.Vault.KVv2(harness.MountName(d.prefix)), d.below("products/", d.product)
	var witness map[string]any
	harness.Eventually(t, "the product has its witness", func() error {
		secret, err := kv.Get(ctx, "products/"+d.product)
		if err == nil {
			witness = secret.Data
		}
		return err
	})
	// A pass that has begun may write it again.
	passes := d.r.Passes()
	harness.Eventually(t, "two passes are made", func() error {
		if n := d.r.Passes() - passes; n < 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if err := kv.DeleteMetadata(ctx, "products/"+d.product); err != nil {
		t.Fatal(err)
	}
	d.write(key, rubbish)
	for _, o := range harness.Operations {
		o := o.Of("u", d.product)
		switch {
		case o.Key == harness.PlatformHeader:
			d.r.Send(t, o, d.harmed.PlatformKey).Want(t, o, 503, "RECORD_UNREADABLE")
		case strings.Contains(o.Path, d.product) && o.Key == harness.AdminHeader:
			d.r.Send(t, o, harness.AdminKey).Want(t, o, 503, "RECORD_UNREADABLE")
		}
	}
	// The admin cannot give an engine to one of its users either.
	bare := engineIDOf(d.engine.EngineID[:6])
	bareVolume(d.s, d.engine, bare)
	d.write(d.prefix+"quarantine/"+bare, `{"engine_id": "`+bare+`"}`)
	harness.WantCode(t, harness.ErrOf(d.r.Admin().Adopt(ctx, bare, d.product, "x")), 503, "RECORD_UNREADABLE")
	if err := d.r.Admin().Discard(ctx, bare); err != nil {
		t.Error(err)
	}
	d.adminReads(t)
	list, err := d.r.Admin().Products(ctx)
	if err != nil || list.Total != 1 || len(list.Unreadable) != 1 || list.Unreadable[0] != d.product {
		t.Errorf("the products are %+v, %v", list, err)
	}
	if st, err := d.r.Admin().Whole(ctx); err != nil || st.Unreadable.Products != 1 {
		t.Errorf("the status is %+v, %v", st, err)
	}
	if err := d.life(ctx); err != nil {
		t.Error(err)
	}
	if _, err := kv.Put(ctx, "products/"+d.product, witness); err != nil {
		t.Fatal(err)
	}
	if err := d.r.Admin().Reconcile(ctx); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the product is back", func() error { return d.works(ctx) })
	if rows := d.r.Audited(t, "registry_recover"); len(rows) == 0 {
		t.Error("that it was brought back is not in the audit log")
	}
}

// TestUnreadableRow damages the row of an engine whose secret is missing: an admin must
// decide. Nothing of the engine is removed meanwhile, while leftovers of others are.
func TestUnreadableRow(t *testing.T) {
	t.Parallel()
	d := newDamage(t, "unreadable-row/", map[string]string{"ORCH_VOLUME_POOL": "2", "ORCH_ORPHAN_GRACE_S": "1"})
	ctx, id := t.Context(), d.engine.EngineID
	leftover := engineIDOf(id[:6])
	looseKey(d.s, d.prefix, leftover)
	suspected(d.s, d.prefix, leftover)
	if err := d.s.Vault.KVv2(harness.MountName(d.prefix)).DeleteMetadata(ctx, "engines/"+id); err != nil {
		t.Fatal(err)
	}
	d.write(d.below("engines/", id), rubbish)
	for _, o := range harness.Operations {
		if o := o.Of("u", d.product); o.Key == harness.PlatformHeader && strings.Contains(o.Path, "/u") {
			d.r.Send(t, o, d.harmed.PlatformKey).Want(t, o, 503, "RECORD_UNREADABLE")
		}
	}
	_, err := d.r.Admin().EngineByID(ctx, id)
	harness.WantCode(t, err, 503, "RECORD_UNREADABLE")
	harness.Eventually(t, "the engine is quarantined", func() error {
		list, err := d.r.Admin().Quarantine(ctx)
		if err != nil || len(list.Engines) != 1 || list.Engines[0].EngineID != id {
			return fmt.Errorf("%+v, %w", list, err)
		}
		st, err := d.r.Admin().Whole(ctx)
		if err != nil || st.Unreadable.Engines != 1 {
			return fmt.Errorf("%+v, %w", st, err)
		}
		return nil
	})
	harness.Eventually(t, "the leftover of another engine is removed", func() error {
		if mount := d.s.MountWith(leftover); mount != "" {
			return fmt.Errorf("it is in %s", mount)
		}
		return nil
	})
	if err := d.life(ctx); err != nil {
		t.Error(err)
	}
	d.adminReads(t)
	if _, err := d.r.Admin().Adopt(ctx, id, d.product, "u"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the engine has a new key", func() error { return harness.ErrOf(d.harmed.RotateKey(ctx, "u")) })
	if err := d.works(ctx); err != nil {
		t.Error(err)
	}
	if _, err := d.harmed.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if left := d.left(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestNewerRow lets a newer version of the service write a row: a state that this version
// does not know is refused with that reason, and other unknown fields are kept.
func TestNewerRow(t *testing.T) {
	t.Parallel()
	d := newDamage(t, "newer-row/", map[string]string{"ORCH_VOLUME_POOL": "2"})
	ctx, key := t.Context(), d.below("engines/", d.engine.EngineID)
	set := func(key string, values map[string]any) {
		t.Helper()
		var row map[string]any
		if err := json.Unmarshal([]byte(d.value(key)), &row); err != nil {
			t.Fatal(err)
		}
		for name, v := range values {
			row[name] = v
		}
		b, err := json.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		d.write(key, string(b))
	}
	keeps := func(key, name string) {
		t.Helper()
		var row map[string]any
		if err := json.Unmarshal([]byte(d.value(key)), &row); err != nil || row[name] != "newer" {
			t.Errorf("%s has %v of what a newer version wrote, %v", key, row[name], err)
		}
	}
	set(key, map[string]any{"state": "hibernating", "hibernates": "newer"})
	newer := d.value(key)
	for _, o := range harness.Operations {
		if o := o.Of("u", d.product); o.Key == harness.PlatformHeader && strings.Contains(o.Path, "/u") {
			got := d.r.Send(t, o, d.harmed.PlatformKey)
			got.Want(t, o, 503, "RECORD_UNREADABLE")
			if !strings.Contains(got.Message, "newer version") {
				t.Errorf("%s returns %q", o.ID, got.Message)
			}
		}
	}
	before := d.r.Passes()
	if err := d.r.Admin().Reconcile(ctx); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "three passes left it alone", func() error {
		if n := d.r.Passes() - before; n < 3 {
			return fmt.Errorf("%d passes", n)
		}
		return nil
	})
	if now := d.value(key); now != newer {
		t.Errorf("the row is %s, and was %s", now, newer)
	}
	if st, err := d.r.Admin().Whole(ctx); err != nil || st.Unreadable.Engines != 1 {
		t.Errorf("the status is %+v, %v", st, err)
	}
	if err := d.life(ctx); err != nil {
		t.Error(err)
	}
	set(key, map[string]any{"state": "running"})
	product := d.below("products/", d.product)
	set(product, map[string]any{"region": "newer"})
	harness.Eventually(t, "the engine is back", func() error { return d.works(ctx) })
	if _, err := d.harmed.Stop(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.harmed.Start(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	keeps(key, "hibernates")
	if _, err := d.r.Admin().SetPolicy(ctx, d.product, client.Policy{}); err != nil {
		t.Fatal(err)
	}
	keeps(product, "region")
	d.write(product, rubbish)
	harness.Eventually(t, "the product is back", func() error { return d.works(ctx) })
	keeps(product, "region") // its witness contains it, too
}

// TestTwoRowsOfOneEngine writes a second row that names a user's engine: nothing of the
// engine is removed while there are two.
func TestTwoRowsOfOneEngine(t *testing.T) {
	t.Parallel()
	d := newDamage(t, "twins/", map[string]string{"ORCH_VOLUME_POOL": "2"})
	ctx, id := t.Context(), d.engine.EngineID
	rows, err := d.s.Engines(d.prefix)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	twin := func() {
		t.Helper()
		row := *rows[0]
		row.UserID = "twin"
		value, err := json.Marshal(&row)
		if err != nil {
			t.Fatal(err)
		}
		d.write(d.prefix+"engines/"+harness.RowNameOf(&row), string(value))
		harness.Eventually(t, "both are reported", func() error {
			list, err := d.r.Admin().Quarantine(ctx)
			if err != nil || len(list.Engines) != 1 || list.Engines[0].EngineID != id || list.Engines[0].UserID != "u" {
				return fmt.Errorf("%+v, %w", list, err)
			}
			if acts := planned(d.r, t, id); len(acts) != 2 {
				return fmt.Errorf("planned: %v", acts)
			}
			return nil
		})
	}
	twin()
	harness.WantCode(t, harness.ErrOf(d.harmed.Destroy(ctx, "u")), 409, "ENGINE_QUARANTINED")
	harness.WantCode(t, harness.ErrOf(harness.Admit(ctx, d.harmed, "twin", false, false)), 409, "ENGINE_QUARANTINED")
	if err := d.works(ctx); err != nil {
		t.Error(err)
	}
	d.adminReads(t)
	if err := d.life(ctx); err != nil {
		t.Error(err)
	}
	// Only the other user's row is removed.
	if _, err := d.harmed.Destroy(ctx, "twin"); err != nil {
		t.Fatal(err)
	}
	if err := d.works(ctx); err != nil {
		t.Error(err)
	}
	twin()
	if _, err := d.r.Admin().Adopt(ctx, id, "", ""); err != nil {
		t.Fatal(err)
	}
	harness.WantCode(t, harness.ErrOf(d.harmed.Engine(ctx, "twin")), 404, "ENGINE_NOT_FOUND")
	if err := d.works(ctx); err != nil {
		t.Error(err)
	}
	if _, err := d.harmed.Destroy(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "nothing remains", func() error {
		if left := d.left(); len(left) > 0 {
			return fmt.Errorf("left behind: %v", left)
		}
		return nil
	})
}
