// Package show prints tables and sizes as etcd's command line programs do.
package show
