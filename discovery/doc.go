// Package discovery finds the members of a new cluster when they are not listed by flag: by DNS SRV
// records (SRV), or in another cluster's keys (Join). A member uses it once in its life, before it
// has data, from one goroutine.
//
// # DNS
//
// _etcd-server-ssl._tcp.DOMAIN names members with https, _etcd-server._tcp.DOMAIN with http; both
// count. A record whose address is one that this member advertises is this member; the others are
// called 0, 1, ... per service. The result has the form of --initial-cluster.
//
// # Keys
//
//	/_etcd/registry/TOKEN/_config/size          how many members the new cluster has; written by a person
//	/_etcd/registry/TOKEN/members/ID (hex)      NAME=URL,NAME=URL of one member; written by itself
//
// A member registers, and waits until as many have registered as the cluster has members. The first
// in the order of creation are the cluster; later ones get the error that it is full.
//
// Sources: etcd's client/pkg/srv and server/etcdserver/api/v3discovery, whose names, texts and log
// lines are kept.
package discovery
