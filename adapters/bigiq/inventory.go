package bigiq

import (
	"context"
	"slices"
	"time"
)

// inventoryAge is how long what BIG-IQ manages is taken as known. It spares a bulk of runs thousands of long lists, and
// is no longer than the time in which a device can be added unnoticed between a list and a kill anyway.
const inventoryAge = 10 * time.Second

// inventoryCache holds the last inventory.
type inventoryCache struct {
	turns *turns // guards the fields below

	held  inventory
	is    need
	asked time.Time
}

// get returns what is needed of the inventory, no older than age, and whether it was asked for by this call.
func (c *inventoryCache) get(ctx context.Context, cl *client, n need, age time.Duration) (inv inventory, fresh bool, err error) {
	recent := func() bool {
		inv = c.held
		return !c.asked.IsZero() && time.Since(c.asked) < age && c.is.serves(n)
	}
	err = c.turns.take(ctx, recent, func() error {
		asked := time.Now()
		got, err := list(ctx, cl, n)
		if err != nil {
			return err
		}
		inv, fresh = got, true
		c.held, c.is, c.asked = got, n, asked
		return nil
	})
	return inv, fresh, err
}

// serves reports whether an inventory asked for with n has what x needs.
func (n need) serves(x need) bool {
	return (n.accessGroups || !x.accessGroups) && (n.addresses == nil || slices.Equal(n.addresses, x.addresses))
}

// list asks BIG-IQ for its devices and, if needed, its access groups.
func list(ctx context.Context, cl *client, n need) (inventory, error) {
	query, err := queryAddresses(n.addresses)
	if err != nil {
		return inventory{}, err
	}
	var inv inventory
	reply, err := cl.do(ctx, get(pathDevices, query))
	if err != nil {
		return inventory{}, err
	}
	if inv.devices, err = decodeDevices(reply); err != nil {
		return inventory{}, err
	}
	if !n.accessGroups {
		return inv, nil
	}
	if reply, err = cl.do(ctx, get(pathGroups, queryGroups)); err != nil {
		return inventory{}, err
	}
	inv.accessGroups, err = decodeAccessGroups(reply)
	return inv, err
}
