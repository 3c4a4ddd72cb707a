package lint

import (
	"fmt"
	"go/parser"
	"go/token"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// What the pages and comments cite must be in the tree, so that a reader can follow it.

// Notes that are not in the tree; nothing may cite them. (Joined here, or this file would.)
var uncitable = []string{"DESIGN" + ".md", "STYLE" + ".md", "reference" + " surface", "reference/" + "surface"}

var (
	link     = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	quoted   = regexp.MustCompile("`([^`\n]+)`")
	filePath = regexp.MustCompile(`^(\./)?[\w.-]+(/[\w.-]+)+\.(go|md|txt)$`)
	fileName = regexp.MustCompile(`(^|[^\w/.*<-])(\w+\.go)\b`)
	sources  = regexp.MustCompile(`(?s)# Sources?\n.*$|\bSources?\b[^\n]*:.*?(\n\n|$)`) // may name files of other projects
)

// A tree is the text of the pages and Go files by their slash-separated path, and the names of all
// files.
type tree struct {
	texts map[string]string
	files map[string]bool
}

func (tr tree) has(name string) bool {
	if tr.files[name] {
		return true
	}
	for file := range tr.files {
		if strings.HasPrefix(file, name+"/") {
			return true
		}
	}
	return false
}

// slugs are the anchors of a page, made as GitHub makes them of its headings.
func slugs(text string) (anchors []string) {
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		heading := strings.TrimLeft(line, "#")
		if fenced || heading == line || !strings.HasPrefix(heading, " ") {
			continue
		}
		slug := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(heading))
		anchor := slug
		for n := 1; slices.Contains(anchors, anchor); n++ {
			anchor = fmt.Sprintf("%s-%d", slug, n)
		}
		anchors = append(anchors, anchor)
	}
	return anchors
}

// deadLinks are the relative links of a page that lead nowhere.
func (tr tree) deadLinks(page string) (faults []string) {
	for _, m := range link.FindAllStringSubmatch(tr.texts[page], -1) {
		to, err := url.Parse(m[1])
		if err != nil {
			faults = append(faults, fmt.Sprintf("%s: %v", m[1], err))
			continue
		}
		if to.IsAbs() {
			continue
		}
		target := page
		if to.Path != "" {
			target = path.Join(path.Dir(page), to.Path)
		}
		switch {
		case !tr.has(target):
			faults = append(faults, m[1]+": there is no "+target)
		case to.Fragment != "" && !slices.Contains(slugs(tr.texts[target]), to.Fragment):
			faults = append(faults, fmt.Sprintf("%s: %s has no heading #%s", m[1], target, to.Fragment))
		}
	}
	return faults
}

// missingFiles are the paths in backticks that look like files of the tree and are not.
func (tr tree) missingFiles(text string) (faults []string) {
	for _, m := range quoted.FindAllStringSubmatch(text, -1) {
		if filePath.MatchString(m[1]) && !tr.files[path.Clean(m[1])] {
			faults = append(faults, "there is no "+m[1])
		}
	}
	return faults
}

func uncited(text string) (faults []string) {
	for _, note := range uncitable {
		if strings.Contains(text, note) {
			faults = append(faults, "cites "+note+", which is not in the tree")
		}
	}
	return faults
}

// wrongFiles compares the files that a package's comment names with those of its folder: what it
// names is there, and a list, which begins with "Files:", is complete.
func wrongFiles(doc string, files, tests []string) (faults []string) {
	var named []string
	for _, m := range fileName.FindAllStringSubmatch(sources.ReplaceAllString(doc, ""), -1) {
		named = append(named, m[2])
		if !slices.Contains(files, m[2]) && !slices.Contains(tests, m[2]) {
			faults = append(faults, "names "+m[2]+", which is not there")
		}
	}
	if !strings.Contains(doc, "Files:") {
		return faults
	}
	for _, name := range files {
		if name != "doc.go" && !slices.Contains(named, name) {
			faults = append(faults, "lists its files, but not "+name)
		}
	}
	return faults
}

// comments are the comments of a Go file.
func comments(t testing.TB, name, src string) string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, c := range f.Comments {
		all.WriteString(c.Text())
	}
	return all.String()
}

func readTree(t testing.TB) tree {
	t.Helper()
	tr := tree{map[string]string{}, map[string]bool{}}
	for _, name := range tracked(t) {
		data, err := os.ReadFile(filepath.Join(root(t), name))
		if err != nil {
			continue // deleted, or a link to a folder
		}
		tr.files[name] = true
		if ext := path.Ext(name); ext == ".md" || ext == ".go" {
			tr.texts[name] = string(data)
		}
	}
	return tr
}

// TestCitations: links lead to a page and a heading, paths to a file, and nothing cites what only
// its author has.
func TestCitations(t *testing.T) {
	tr := readTree(t)
	for name, text := range tr.texts {
		var faults []string
		if path.Ext(name) == ".md" {
			faults = slices.Concat(tr.deadLinks(name), tr.missingFiles(text), uncited(text))
		} else {
			said := comments(t, name, text)
			faults = slices.Concat(tr.missingFiles(said), uncited(said))
		}
		for _, fault := range faults {
			t.Errorf("%s: %s", name, fault)
		}
	}
}

// TestFileLists: the files that a package's comment names are there, and its list is whole.
func TestFileLists(t *testing.T) {
	for _, p := range packages(t) {
		rel, _ := relative(p.ImportPath)
		dir, err := os.ReadDir(p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		// Also the files of other systems, which go list leaves out.
		var files, tests []string
		doc := p.Doc
		for _, e := range dir {
			switch {
			case strings.HasSuffix(e.Name(), "_test.go"):
				tests = append(tests, e.Name())
			case strings.HasSuffix(e.Name(), ".go"):
				files = append(files, e.Name())
			}
			if e.Name() == "doc.go" { // p.Doc is its first sentence
				f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, "doc.go"), nil, parser.ParseComments|parser.PackageClauseOnly)
				if err != nil {
					t.Fatal(err)
				}
				doc = f.Doc.Text()
			}
		}
		for _, fault := range wrongFiles(doc, files, tests) {
			t.Errorf("%s: its comment %s", rel, fault)
		}
	}
}

// TestCitationsCanFail shows that each fault would be found.
func TestCitationsCanFail(t *testing.T) {
	tr := tree{
		texts: map[string]string{
			"README.md":  "[a](docs/a.md) [b](docs/a.md#two-words-1) [c](https://example.org/x.md) [d](#here)\n# Here\n",
			"docs/a.md":  "# Two `words`\n```\n# Not one\n```\n## Two words\n[r](../README.md#here) [f](../proof)\n",
			"docs/b.md":  "[a](docs/a.md) [b](a.md#not-one) [c](#nowhere) [d](b%zz.md)\n",
			"proof/x.go": "",
		},
		files: map[string]bool{"README.md": true, "docs/a.md": true, "docs/b.md": true, "proof/x.go": true},
	}
	for page, want := range map[string]int{"README.md": 0, "docs/a.md": 0, "docs/b.md": 4} {
		if faults := tr.deadLinks(page); len(faults) != want {
			t.Errorf("%s: %q, want %d", page, faults, want)
		}
	}
	for text, want := range map[string]int{
		"`proof/x.go` and `./proof/x.go`": 0,
		"`proof/y.go`":                    1,
		"`docs/c.md` and proof/y.go":      1,
		"`member/*.go`, `x.go`, `a/b.db`": 0,
	} {
		if faults := tr.missingFiles(text); len(faults) != want {
			t.Errorf("%s: %q, want %d", text, faults, want)
		}
	}
	for text, want := range map[string]int{"see ARCHITECTURE.md": 0, "see " + uncitable[0] + ", " + uncitable[2] + " 8": 2} {
		if faults := uncited(text); len(faults) != want {
			t.Errorf("%s: %q, want %d", text, faults, want)
		}
	}
	for doc, want := range map[string]int{
		"Files: a.go, b.go (B).":                    0,
		"Files: a.go.":                              1, // not b.go
		"See a.go and etcd's server/lessor.go.":     0,
		"See c.go and b_test.go.":                   1, // there is no c.go
		"Sources: etcd's c.go,\nd.go.\n\nSee c.go.": 1,
	} {
		if faults := wrongFiles(doc, []string{"a.go", "b.go", "doc.go"}, []string{"b_test.go"}); len(faults) != want {
			t.Errorf("%s: %q, want %d", doc, faults, want)
		}
	}
}
