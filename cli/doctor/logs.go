package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/cli/doctor/logs"
)

// maxFiles bounds how many files a directory may bring.
const maxFiles = 2000

// logsCommand makes `doctor logs`.
func (d *doctor) logsCommand() *cobra.Command {
	var since, until, zone string
	var incident int
	cmd := &cobra.Command{
		Use:   "logs FILE|DIR|-...",
		Short: "Reads the logs of members and clients, in any form, and says what happened, to whom, and why.",
		Long: `Reads logs of several members and of clients, of etcd from 3.3 on and of Belay, mixed or not: zap JSON and console,
etcd's old text form, journalctl (short, short-iso, json, export), docker's files, the kubelet's files, kubectl logs, all
of it also compressed with gzip; "-" is standard input. It prints one timeline of all members, and of each incident the
member, the cause with its lines, and what to do, or that these logs do not tell.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("no log: give files, directories, or - for standard input")
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&since, "since", "", "only what was later: a time (2026-11-29T08:00:00Z, \"2026-11-29 08:00\", 08:00), or how long ago (2h)")
	fs.StringVar(&until, "until", "", "only what was earlier; as --since")
	fs.IntVar(&incident, "incident", 0, "only this incident, with all its lines")
	fs.StringVar(&zone, "zone", "", "zone of times that name none, as Europe/Berlin; empty: this machine's")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		now := time.Now()
		o := logs.Options{Zone: time.Local}
		var err error
		if zone != "" {
			if o.Zone, err = time.LoadLocation(zone); err != nil {
				return usagef("--zone: %v", err)
			}
		}
		if o.Since, err = moment(since, now, o.Zone); err != nil {
			return usagef("--since: %v", err)
		}
		if o.Until, err = moment(until, now, o.Zone); err != nil {
			return usagef("--until: %v", err)
		}
		if incident < 0 {
			return usagef("--incident %d: incidents count from 1", incident)
		}
		c := logs.NewCollector(o)
		for _, arg := range args {
			if err := d.readLogs(cmd, c, arg, now); err != nil {
				return err
			}
		}
		r, err := c.Judge(logs.Ask{Subject: strings.Join(args, " "), At: now, Incident: incident})
		if err != nil {
			return usageError{err}
		}
		return d.print(r)
	}
	return cmd
}

// readLogs reads a file, all files of a directory, or standard input. Only what cannot be opened is
// an error: what breaks off is told in the report.
func (d *doctor) readLogs(cmd *cobra.Command, c *logs.Collector, arg string, now time.Time) error {
	if arg == "-" {
		c.Read(d.in, "-", now)
		return nil
	}
	info, err := os.Stat(arg)
	if err != nil {
		return err
	}
	files := []string{arg}
	if info.IsDir() {
		files = nil
		err := filepath.WalkDir(arg, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				if path == arg {
					return err
				}
				c.Unreadable(path, err)
				return nil
			}
			if entry.Type().IsRegular() && len(files) < maxFiles && isLogName(path) {
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("%s holds no file that may be a log", arg)
		}
		slices.Sort(files)
	}
	for _, path := range files {
		if err := cmd.Context().Err(); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil && info.IsDir() {
			c.Unreadable(path, err)
			continue
		}
		if err != nil {
			return err
		}
		written := now
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			written = info.ModTime()
		}
		c.Read(f, path, written)
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// isLogName says whether a file of a directory is read: not the data of members that lie beside
// their logs.
func isLogName(path string) bool {
	name := strings.ToLower(filepath.Base(path))
	for _, ext := range []string{".wal", ".snap", ".db", ".sst", ".tmp", ".html", ".svg", ".png", ".pem", ".crt", ".key", ".yaml", ".yml", ".tar"} {
		if strings.HasSuffix(name, ext) {
			return false
		}
	}
	dir := filepath.ToSlash(filepath.Dir(path)) + "/"
	return !strings.HasPrefix(name, ".") && !strings.Contains(dir, "/member/")
}

// moment reads a time as people write it, or how long ago; empty: zero.
func moment(text string, now time.Time, zone *time.Location) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, zone); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		if t, err := time.ParseInLocation(layout, text, zone); err == nil {
			y, m, day := now.In(zone).Date()
			return time.Date(y, m, day, t.Hour(), t.Minute(), t.Second(), 0, zone), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time (2026-11-29T08:00:00Z, \"2026-11-29 08:00\", 08:00) and no duration (2h)", text)
}
