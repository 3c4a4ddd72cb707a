package config

import (
	"time"

	"github.com/belaydb/belay/backup"
)

func defaultBackup() backup.Settings {
	return backup.Settings{
		Every: time.Hour, Increments: time.Minute, Retention: backup.Retention{For: 7 * 24 * time.Hour, Least: 2}, BytesPerSecond: 64 << 20,
	}
}

func backupFlags() []flagDef {
	text := func(name, usage string, field func(*Config) *string) flagDef {
		return flagDef{group: groupBackup, name: name, usage: usage, bind: stringFlag(field)}
	}
	span := func(name, usage string, field func(*Config) *time.Duration) flagDef {
		return flagDef{group: groupBackup, name: name, usage: usage, bind: durationFlag(field)}
	}
	return []flagDef{
		text("backup-to", "Directory, or bucket as s3://BUCKET/PREFIX, where the leader makes backups, and proves each by restoring it. The same place for all members is best. Empty: none are made.", func(c *Config) *string { return &c.Backup.To }),
		span("backup-interval", "How often a full backup is made.", func(c *Config) *time.Duration { return &c.Backup.Every }),
		span("backup-increment-interval", "How often what was written since is added, so that each second can be restored. 0: never.", func(c *Config) *time.Duration { return &c.Backup.Increments }),
		span("backup-retention", "How long a full backup is kept with its increments. 0: for ever.", func(c *Config) *time.Duration { return &c.Backup.For }),
		{group: groupBackup, name: "backup-keep", usage: "How many good full backups are kept however old they are.",
			bind: intFlag(func(c *Config) *int { return &c.Backup.Least })},
		{group: groupBackup, name: "backup-max-bytes-per-second", usage: "How fast backups are written and read back, at most. 0: no bound.",
			bind: int64Flag(func(c *Config) *int64 { return &c.Backup.BytesPerSecond })},
		span("backup-max-age", "How old the last good backup may be before the log and a metric say so. 0: twice the shorter interval, and 10 minutes.", func(c *Config) *time.Duration { return &c.Backup.MaxAge }),
		text("backup-scratch-dir", "Where backups are restored to be proved, on a disk with room for all the data. Empty: beside the data.", func(c *Config) *string { return &c.Backup.ScratchDir }),
	}
}
