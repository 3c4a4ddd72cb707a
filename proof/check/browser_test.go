package check

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// browser is a headless Chromium, asked by the DevTools protocol over two pipes: what it needs of
// the protocol is a dozen calls, and a library for it would be larger than the tests.
type browser struct {
	in *os.File // commands; each ends with a zero byte

	mu      sync.Mutex
	last    int
	waiting map[int]chan devtoolsMessage
	pages   map[string]*page // by session
	ended   bool
}

type devtoolsMessage struct {
	ID      int             `json:"id"`
	Session string          `json:"sessionId"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params"`
	Result  json.RawMessage `json:"result"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// page is one tab, with all that it asked for and all that its console said.
type page struct {
	b       *browser
	session string

	mu     sync.Mutex
	asked  []string // URLs
	spoken []string // warnings, errors and exceptions
}

// newBrowser starts Chromium, or skips the test where there is none. It trusts certificates with
// the keys in trusted (hashes as Chromium takes them), beside those of the machine.
func newBrowser(t *testing.T, trusted ...string) *browser {
	t.Helper()
	bin := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			bin = found
			break
		}
	}
	if bin == "" {
		t.Skip("no Chromium in the PATH: install Debian's package chromium")
	}
	home := t.TempDir()
	args := []string{
		"--headless=new", "--remote-debugging-pipe", "--user-data-dir=" + filepath.Join(home, "profile"), "--disable-gpu",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
		"--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en",
	}
	if len(trusted) > 0 {
		args = append(args, "--ignore-certificate-errors-spki-list="+strings.Join(trusted, ","))
	}
	if os.Geteuid() == 0 {
		args = append(args, "--no-sandbox") // it refuses to run as root with one
	}
	cmd := exec.Command(bin, append(args, "about:blank")...)
	cmd.Env = append(os.Environ(), "HOME="+home)
	logFile, err := os.Create(filepath.Join(home, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	commands, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{commands, answers}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", bin)
	_, _ = commands.Close(), answers.Close()
	b := &browser{in: in, waiting: map[int]chan devtoolsMessage{}, pages: map[string]*page{}}
	var reading sync.WaitGroup
	reading.Go(func() { b.read(out) })
	t.Cleanup(func() {
		_ = b.call("", "Browser.close", nil, nil) // it may be gone
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		_ = in.Close()
		_ = out.Close()
		reading.Wait()
		_ = logFile.Close()
		if text, err := os.ReadFile(logFile.Name()); err == nil && t.Failed() {
			t.Logf("Chromium's own log: %s", text)
		}
	})
	return b
}

func (b *browser) read(out *os.File) {
	r := bufio.NewReader(out)
	for {
		text, err := r.ReadBytes(0)
		b.mu.Lock()
		if err != nil {
			b.ended = true
			for _, c := range b.waiting {
				close(c)
			}
			b.waiting = nil
			b.mu.Unlock()
			return
		}
		var m devtoolsMessage
		if json.Unmarshal(text[:len(text)-1], &m) == nil {
			if c := b.waiting[m.ID]; c != nil {
				c <- m // it holds one
				delete(b.waiting, m.ID)
			}
			if p := b.pages[m.Session]; p != nil && m.ID == 0 {
				p.event(m)
			}
		}
		b.mu.Unlock()
	}
}

// call sends one command and waits for its answer, for a minute.
func (b *browser) call(session, method string, params, result any) error {
	if params == nil {
		params = struct{}{}
	}
	c := make(chan devtoolsMessage, 1)
	b.mu.Lock()
	if b.ended {
		b.mu.Unlock()
		return errors.New("Chromium has ended")
	}
	b.last++
	message := map[string]any{"id": b.last, "method": method, "params": params}
	if session != "" {
		message["sessionId"] = session
	}
	text, err := json.Marshal(message)
	if err == nil {
		b.waiting[b.last] = c
		_, err = b.in.Write(append(text, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case m, ok := <-c:
		switch {
		case !ok:
			return fmt.Errorf("%s: Chromium has ended", method)
		case m.Error != nil:
			return fmt.Errorf("%s: %s", method, m.Error.Message)
		case result == nil:
			return nil
		}
		return json.Unmarshal(m.Result, result)
	case <-time.After(time.Minute):
		return fmt.Errorf("%s: no answer within a minute", method)
	}
}

// open opens a page in a window of that size; phone is with a touch screen's rules for widths.
func (b *browser) open(t *testing.T, url string, width, height int, phone bool) *page {
	t.Helper()
	var target struct {
		ID string `json:"targetId"`
	}
	var session struct {
		ID string `json:"sessionId"`
	}
	if err := b.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target); err != nil {
		t.Fatal(err)
	}
	if err := b.call("", "Target.attachToTarget", map[string]any{"targetId": target.ID, "flatten": true}, &session); err != nil {
		t.Fatal(err)
	}
	p := &page{b: b, session: session.ID}
	b.mu.Lock()
	b.pages[session.ID] = p
	b.mu.Unlock()
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		p.call(t, domain+".enable", nil, nil)
	}
	p.call(t, "Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}, nil)
	p.call(t, "Page.navigate", map[string]any{"url": url}, nil)
	return p
}

func (p *page) event(m devtoolsMessage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var e struct {
		Request struct {
			URL string `json:"url"`
		} `json:"request"`
		Type  string `json:"type"`
		Entry struct {
			Source, Level, Text, URL string
		} `json:"entry"`
	}
	if err := json.Unmarshal(m.Params, &e); err != nil {
		p.spoken = append(p.spoken, fmt.Sprintf("%s: %v", m.Method, err))
		return
	}
	switch m.Method {
	case "Network.requestWillBeSent":
		p.asked = append(p.asked, e.Request.URL)
	case "Network.webSocketCreated", "Runtime.exceptionThrown":
		p.spoken = append(p.spoken, fmt.Sprintf("%s: %s", m.Method, m.Params))
	case "Runtime.consoleAPICalled":
		if e.Type == "error" || e.Type == "warning" || e.Type == "assert" {
			p.spoken = append(p.spoken, fmt.Sprintf("console.%s: %s", e.Type, m.Params))
		}
	case "Log.entryAdded":
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			p.spoken = append(p.spoken, fmt.Sprintf("%s %s: %s %s", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL))
		}
	}
}

func (p *page) call(t *testing.T, method string, params, result any) {
	t.Helper()
	if err := p.b.call(p.session, method, params, result); err != nil {
		t.Fatal(err)
	}
}

// said returns what the console said since the last call.
func (p *page) said() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	said := p.spoken
	p.spoken = nil
	return said
}

// value is what a script's expression gives, in to.
func (p *page) value(t *testing.T, expression string, to any) {
	t.Helper()
	var got struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		Exception json.RawMessage `json:"exceptionDetails"`
	}
	p.call(t, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &got)
	if got.Exception != nil {
		t.Fatalf("%s: %s", expression, got.Exception)
	}
	if to == nil {
		return
	}
	if err := json.Unmarshal(got.Result.Value, to); err != nil {
		t.Fatalf("%s gives %s: %v", expression, got.Result.Value, err)
	}
}

// text is what a reader sees of the element that a selector finds.
func (p *page) text(t *testing.T, selector string) (text string) {
	t.Helper()
	p.value(t, fmt.Sprintf("(e => e?.checkVisibility() ? e.innerText : '')(document.querySelector(%q))", selector), &text)
	return text
}

// rows are the cells of a table, without its titles.
func (p *page) rows(t *testing.T, selector string) (rows [][]string) {
	t.Helper()
	p.value(t, fmt.Sprintf("[...document.querySelectorAll(%q)].slice(1).map(r => [...r.cells].map(c => c.innerText))", selector+" tr"), &rows)
	return rows
}

// until waits for a condition of the page, for a minute.
func (p *page) until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come; the page reads:\n%s\nand said %q", what, p.text(t, "body"), p.said())
		}
	}
}

// picture writes all of the page as it looks into a PNG file.
func (p *page) picture(t *testing.T, path string) {
	t.Helper()
	var size struct {
		Content struct {
			Width, Height float64
		} `json:"cssContentSize"`
	}
	p.call(t, "Page.getLayoutMetrics", nil, &size)
	var shot struct {
		Data string `json:"data"`
	}
	p.call(t, "Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true, "clip": map[string]any{
		"x": 0, "y": 0, "width": size.Content.Width, "height": size.Content.Height, "scale": 1,
	}}, &shot)
	data, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(path, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %.0f x %.0f", path, size.Content.Width, size.Content.Height)
}
