// Package bigiq ends BIG-IP APM sessions through F5 BIG-IQ Centralized Management.
//
// It speaks the task API "kill-sessions" of BIG-IQ Access. F5 documents it in "Kill active access sessions" and
// "Terminating APM Sessions" (BIG-IQ how-to guides), in the API reference "BIG-IQ APM kill active access sessions" (5.2)
// and, for later releases, under https://clouddocs.f5.com/products/big-iq/mgmt-api/.
//
// What it can match: a user, all users, or listed session ids, on a union of BIG-IP clusters, access groups and devices.
// A session behind a device is one of provider "access_group", named as the device's access group, and of the groups
// "access_group", "cluster" and "device" (the device's machine id).
//
// What it cannot match: an authentication method, an access profile, a group of users, or what lies both in an access
// group and in a cluster: the three lists of a request add up, they do not narrow each other. Such selectors are refused.
// BIG-IQ has no "everywhere": the scope is configured, or discovered among the devices that BIG-IQ manages.
//
// What it cannot tell: BIG-IQ lists no sessions and never says how many a task ended. Counts are unknown and runs
// unverifiable, beyond BIG-IQ's own "FINISHED" with "COMPLETE".
package bigiq
