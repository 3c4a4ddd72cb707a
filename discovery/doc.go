// Package discovery finds the members of a cluster that is to be made, when nobody has written them
// down: by DNS SRV records (SRV), or in another cluster's keys (Join). It is used once in a
// member's life, before it has data, from one goroutine.
//
// # DNS
//
// _etcd-server-ssl._tcp.DOMAIN names members with https, _etcd-server._tcp.DOMAIN with http; both
// count. A record whose address is one that this member advertises is this member; the others are
// called 0, 1, ... per service. The result is a text as of --initial-cluster.
//
// # Keys
//
//	/_etcd/registry/TOKEN/_config/size          how many members the new cluster has; written by a person
//	/_etcd/registry/TOKEN/members/ID (hex)      NAME=URL,NAME=URL of one member; written by itself
//
// A member registers, and waits until as many have as the cluster has members. The first in the
// order of creation are the cluster; who comes later is told that it is full.
//
// Sources: etcd's client/pkg/srv and server/etcdserver/api/v3discovery, whose names, texts and log
// lines are kept.
package discovery
