package bigiqtest

import (
	"fmt"
	"slices"

	"github.com/endsession/endsession/adapters"
)

// Device is one BIG-IP.
type Device struct {
	MachineID, Hostname, Address string
	// Cluster and AccessGroup are empty if the device is in none. A device's access group counts only once its access
	// configuration is imported.
	Cluster, AccessGroup string
	// Passive units of a cluster hold no sessions, and ending sessions on them does nothing.
	Passive bool
	// NoAccess: BIG-IQ has not discovered the Access service. NotImported: it has not imported the configuration.
	NoAccess, NotImported bool
	// State is that of the trust. Default: ACTIVE.
	State string
	// Unreachable devices make tasks fail.
	Unreachable bool
}

// Machine ids of [Lab].
const (
	Blue1   = "98901455-6384-47cd-bc41-00a39dfe338f"
	Blue2   = "217270dc-83bc-469d-9b84-36d7ebf2f6be"
	Red1    = "5b2c2f0e-1d0a-4a0e-9a51-6d3f2a4a7a01"
	Red2    = "5b2c2f0e-1d0a-4a0e-9a51-6d3f2a4a7a02"
	Branch  = "901695c8-f405-489f-9996-54f7b21da642"
	Guest   = "3f320100-2177-42e0-8a46-2e33cd3366d0"
	Lone    = "7d1fbb6a-57c5-4a70-8f40-0c1b3f6c9e11"
	Balance = "c0a4d7e2-90c3-4f5b-a1e4-2f7f6c1d8b22"
)

// Lab is a set of devices with every relation there is: two clusters in an access group each, one of which also holds a
// single device; a single device in a group of its own; one in no group, as its configuration was not imported; and one
// without the Access service.
func Lab() []Device {
	return []Device{
		{MachineID: Blue1, Hostname: "bluebigipveha1.labf.com", Address: "10.255.4.124", Cluster: "BlueCluster", AccessGroup: "TestGroup"},
		{MachineID: Blue2, Hostname: "bluebigipveha2.labf.com", Address: "10.255.4.125", Cluster: "BlueCluster", AccessGroup: "TestGroup", Passive: true},
		{MachineID: Red1, Hostname: "redbigipveha1.labf.com", Address: "10.255.5.1", Cluster: "RedCluster", AccessGroup: "TestGroup1", Passive: true},
		{MachineID: Red2, Hostname: "redbigipveha2.labf.com", Address: "10.255.5.2", Cluster: "RedCluster", AccessGroup: "TestGroup1"},
		{MachineID: Branch, Hostname: "branch.labf.com", Address: "10.255.6.1", AccessGroup: "TestGroup1"},
		{MachineID: Guest, Hostname: "guest.labf.com", Address: "10.255.6.2", AccessGroup: "TestGroup2"},
		{MachineID: Lone, Hostname: "lone.labf.com", Address: "10.255.6.3", NotImported: true},
		{MachineID: Balance, Hostname: "balance.labf.com", Address: "10.255.6.4", NoAccess: true, NotImported: true},
	}
}

// Places are the sorts of session that devices can hold: one for each that has the Access service and is not passive.
func Places(devices []Device) []adapters.Session {
	var places []adapters.Session
	for _, d := range devices {
		if !d.Passive && !d.NoAccess {
			places = append(places, d.place())
		}
	}
	return places
}

// group is the access group in effect.
func (d Device) group() string {
	if d.NotImported {
		return ""
	}
	return d.AccessGroup
}

// place is what the sessions of d have in common.
func (d Device) place() adapters.Session {
	x := adapters.Session{Device: d.MachineID}
	if g := d.group(); g != "" {
		x.Provider = adapters.Provider{Type: "access_group", Name: g}
		x.Groups = append(x.Groups, adapters.Group{Kind: "access_group", Name: g})
	}
	if d.Cluster != "" {
		x.Groups = append(x.Groups, adapters.Group{Kind: "cluster", Name: d.Cluster})
	}
	x.Groups = append(x.Groups, adapters.Group{Kind: "device", Name: d.MachineID})
	return x
}

// SignIn adds a session on its device, or on the first one that holds sessions of its provider and groups, and returns it
// with the provider and groups that follow from the device. It panics if no device can hold it.
func (s *Server) SignIn(x adapters.Session) adapters.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	i := slices.IndexFunc(s.devices, func(d Device) bool {
		p := d.place()
		return !d.Passive && !d.NoAccess && (x.Device == "" || x.Device == d.MachineID) &&
			(x.Provider == adapters.Provider{} || x.Provider == p.Provider) &&
			!slices.ContainsFunc(x.Groups, func(g adapters.Group) bool { return !slices.Contains(p.Groups, g) })
	})
	if i < 0 {
		panic(fmt.Sprintf("bigiqtest: no device holds a session like %+v", x))
	}
	place := s.devices[i].place()
	place.ID, place.Username = x.ID, x.Username
	place.CreateTime, place.LastAccessTime, place.ExpireTime = x.CreateTime, x.LastAccessTime, x.ExpireTime
	if place.ID == "" {
		place.ID = s.ids.Hex(8)
	}
	if slices.ContainsFunc(s.sessions, func(y adapters.Session) bool { return y.Key() == place.Key() }) {
		panic(fmt.Sprintf("bigiqtest: session %s is there already on %s", place.ID, place.Device))
	}
	s.sessions = append(s.sessions, place)
	return place
}

// Sessions returns who is still signed in.
func (s *Server) Sessions() []adapters.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	return slices.Clone(s.sessions)
}

// Update changes a device.
func (s *Server) Update(machineID string, change func(*Device)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	for i := range s.devices {
		if s.devices[i].MachineID == machineID {
			change(&s.devices[i])
			return
		}
	}
	panic("bigiqtest: no device " + machineID)
}
