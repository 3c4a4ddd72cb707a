package neighbours

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/belaydb/belay/internal/crc32c"
)

// A record is lines, each with a sample:
//
//	+----------+---+------------------------------------------+----+
//	| checksum | ␠ | {"at":"2026-11-29T04:00:10.1Z","took":…} | \n |
//	+----------+---+------------------------------------------+----+
//
// The checksum is the CRC-32C of the JSON, 8 hexadecimal digits. A line that is torn or changed does
// not match its checksum and is left out; what stands before and behind it is read. So a process
// that is killed loses at most the line that it was writing, and a reader needs no lock.
const maxRecordLine = 64 << 10

// appendRecord appends a sample's line to text.
func appendRecord(text []byte, s Sample) ([]byte, error) {
	s.At = s.At.Round(0).UTC()
	body, err := json.Marshal(s)
	if err != nil {
		return text, err
	}
	return append(fmt.Appendf(text, "%08x %s", crc32c.Checksum(body), body), '\n'), nil
}

// parseRecord reads a line; ok is false if it is none, or not whole.
func parseRecord(line []byte) (s Sample, ok bool) {
	line = bytes.TrimRight(line, "\r\n")
	if len(line) < 10 || line[8] != ' ' {
		return s, false
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil || uint32(sum) != crc32c.Checksum(line[9:]) || json.Unmarshal(line[9:], &s) != nil {
		return s, false
	}
	return s, s.Took > 0 && len(s.Fsync.Upper) == len(s.Fsync.Count)
}

// Read reads records, and passes those whose interval ends after since to take. skipped is how many
// lines are not whole.
func Read(r io.Reader, since time.Time, take func(Sample)) (skipped int, err error) {
	lines := bufio.NewReaderSize(r, maxRecordLine)
	for {
		line, err := lines.ReadSlice('\n')
		if s, ok := parseRecord(line); ok {
			if s.At.After(since) {
				take(s)
			}
		} else if len(bytes.TrimSpace(line)) > 0 {
			skipped++
		}
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of a line that is none
			_, err = lines.ReadSlice('\n')
		}
		switch {
		case errors.Is(err, io.EOF):
			return skipped, nil
		case err != nil:
			return skipped, err
		}
	}
}

// Walk calls each for every line of a record's file: its offset, what it says, and the sample, which is
// nil if the line is torn or no line of a record.
func Walk(name string, each func(offset int64, line []byte, s *Sample) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	lines, offset := bufio.NewReaderSize(f, maxRecordLine), int64(0)
	for {
		at := offset
		line, err := lines.ReadSlice('\n')
		offset += int64(len(line))
		line = bytes.TrimSpace(line)
		if s, ok := parseRecord(line); ok {
			if err := each(at, line[9:], &s); err != nil { // without its checksum
				return err
			}
		} else if len(line) > 0 {
			if err := each(at, line, nil); err != nil {
				return err
			}
		}
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of a line that is none
			line, err = lines.ReadSlice('\n')
			offset += int64(len(line))
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// ReadFiles reads the records of files, of one member, into a log, in the order of their times.
func ReadFiles(files []string, since time.Time, log *Log) (skipped int, err error) {
	type file struct {
		name  string
		first time.Time
	}
	var all []file
	for _, name := range files {
		f := file{name: name}
		if _, err := readFile(name, time.Time{}, func(s Sample) {
			if f.first.IsZero() {
				f.first = s.At
			}
		}); err != nil {
			return skipped, err
		}
		all = append(all, f)
	}
	slices.SortStableFunc(all, func(a, b file) int { return a.first.Compare(b.first) })
	for _, f := range all {
		n, err := readFile(f.name, since, log.Add)
		if err != nil {
			return skipped, err
		}
		skipped += n
	}
	return skipped, nil
}

func readFile(name string, since time.Time, take func(Sample)) (skipped int, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return Read(f, since, take)
}

// A Recorder writes samples to w.
type Recorder struct{ W io.Writer }

// Add writes a sample.
func (r Recorder) Add(s Sample) error {
	line, err := appendRecord(nil, s)
	if err != nil {
		return err
	}
	_, err = r.W.Write(line)
	return err
}
