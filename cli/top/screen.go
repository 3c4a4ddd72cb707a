package top

import (
	"context"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"github.com/belaydb/belay/usage"
)

// screen is bubbletea's model: one loop owns it, and looks come to it as messages.
type screen struct {
	ctx    context.Context
	look   func(context.Context) *Look // one at a time
	now    func() time.Time
	story  Story
	shown  *Picture // nil: none yet
	choice Choice
	width  int
	height int
	asking bool
	colour bool
}

// looked brings what a look has found; tick says that it is time for another.
type (
	looked struct{ *Look }
	tick   struct{}
)

func (s *screen) Init() tea.Cmd { return s.ask() }

// ask looks in a goroutine of its own: a member that does not answer delays no key.
func (s *screen) ask() tea.Cmd {
	if s.asking {
		return nil
	}
	s.asking = true
	return func() tea.Msg { return looked{s.look(s.ctx)} }
}

func (s *screen) wait() tea.Cmd {
	return tea.Tick(s.choice.Every, func(time.Time) tea.Msg { return tick{} })
}

func (s *screen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		s.width, s.height = msg.Width, msg.Height
	case looked:
		s.asking = false
		// While paused it goes on looking, so that nothing that happens is missed.
		p := s.story.Add(msg.Look)
		if !s.choice.Paused || s.shown == nil {
			s.shown = p
		}
		return s, s.wait()
	case tick:
		return s, s.ask()
	case tea.KeyPressMsg:
		return s, s.press(msg.String(), msg.Text)
	}
	return s, nil
}

const (
	leastEvery = 250 * time.Millisecond
	mostEvery  = time.Minute
)

func (s *screen) press(key, text string) tea.Cmd {
	c := &s.choice
	if c.Typing {
		switch key {
		case "enter":
			c.Typing = false
		case "esc":
			c.Typing, c.Filter = false, ""
		case "ctrl+c":
			return tea.Quit
		case "backspace":
			if runes := []rune(c.Filter); len(runes) > 0 {
				c.Filter = string(runes[:len(runes)-1])
			}
		default:
			if len(c.Filter) < 100 {
				c.Filter += clean(text)
			}
		}
		return nil
	}
	switch key {
	case "q", "ctrl+c":
		return tea.Quit
	case "?", "h":
		c.Help, c.Offset = !c.Help, 0
	case "esc":
		c.Help, c.Filter, c.Offset = false, "", 0
	case "1", "2", "3", "4", "5":
		c.View, c.Help, c.Offset = View(key[0]-'1'), false, 0
	case "tab", "right", "l":
		c.View, c.Help, c.Offset = (c.View+1)%views, false, 0
	case "shift+tab", "left":
		c.View, c.Help, c.Offset = (c.View+views-1)%views, false, 0
	case "s":
		c.By = (c.By + 1) % (usage.Churn + 1)
	case "k":
		c.Of = (c.Of + 1) % (usage.Watch + 1)
	case "o":
		c.Order = (c.Order + 1) % len(orders)
	case "/":
		c.Typing = true
	case "p", "space":
		c.Paused = !c.Paused
	case "+":
		c.Every = max(c.Every/2, leastEvery)
	case "-":
		c.Every = min(c.Every*2, mostEvery)
	case "down", "j":
		c.Offset++
	case "up":
		c.Offset--
	case "pgdown":
		c.Offset += max(s.height-4, 1)
	case "pgup":
		c.Offset -= max(s.height-4, 1)
	}
	if c.Offset = max(c.Offset, 0); c.Offset > 0 && s.shown != nil {
		c.Offset = min(c.Offset, deepest(s.shown, *c, s.width, s.height)) // or the way back would begin with nothing
	}
	return nil
}

func (s *screen) View() tea.View {
	view := tea.NewView(s.text())
	view.AltScreen = true
	view.WindowTitle = "belay ctl top"
	return view
}

func (s *screen) text() string {
	if s.width == 0 || s.height == 0 {
		return ""
	}
	if s.shown == nil {
		return fit("asking the members ...", s.width)
	}
	c := s.choice
	c.Age = s.now().Sub(s.shown.At)
	return render(page(s.shown, c, s.width, s.height), s.width, s.colour)
}

// render joins lines, with colours or without.
func render(lines []line, width int, colour bool) string {
	styles := map[tone]lipgloss.Style{
		heading: lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Cyan),
		faint:   lipgloss.NewStyle().Faint(true),
		bad:     lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Red),
		chosen:  lipgloss.NewStyle().Reverse(true),
	}
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = l.text
		switch {
		case !colour:
		case l.tone == chosen:
			out[i] = styles[chosen].Render(pad(l.text, width, false))
		case l.tone != plain && l.text != "":
			out[i] = styles[l.tone].Render(l.text)
		}
	}
	return strings.Join(out, "\n")
}
