package report

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"strings"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
)

// PNG is the chart as a bitmap, bars from left to right as in the terminal. Its font is drawn dot by
// dot and is a few KB; see SVG.
func (c Chart) PNG() []byte {
	const line, left, room, right = 18, 110, 480, 200
	height := 50 + line*len(c.Bars)
	m := image.NewRGBA(image.Rect(0, 0, max(left+room+right, 20+7*len(c.Title)), height))
	draw.Draw(m, m.Bounds(), image.White, image.Point{}, draw.Src)
	text := func(x, y int, s string) {
		// The font has ASCII and Latin-1 alone, and of Greek no mu.
		s = strings.Map(func(r rune) rune {
			if r == '\u03bc' {
				return '\u00b5'
			}
			return r
		}, printable(s))
		d := font.Drawer{Dst: m, Src: image.Black, Face: basicfont.Face7x13, Dot: fixed.P(x, y)}
		d.DrawString(s)
	}
	text(10, 22, c.Title)
	most, all := 0.0, 0.0
	for _, bar := range c.Bars {
		most, all = max(most, bar.Value), all+bar.Value
	}
	for i, bar := range c.Bars {
		y := 40 + line*i
		text(left-10-7*len([]rune(bar.Label)), y+11, bar.Label)
		long := 0
		if bar.Value > 0 {
			long = max(1, int(bar.Value/most*room+0.5))
		}
		colour := color.RGBA{0x2b, 0x6c, 0xb0, 0xff}
		if bar.Marks != "" {
			colour = color.RGBA{0xc0, 0x56, 0x21, 0xff}
		}
		draw.Draw(m, image.Rect(left, y, left+long, y+line-4), image.NewUniform(colour), image.Point{}, draw.Src)
		text(left+long+8, y+11, strings.TrimSpace(fmt.Sprintf("%.1f %% %s", 100*bar.Value/max(all, 1), bar.Marks)))
	}
	var b bytes.Buffer
	_ = png.Encode(&b, m) // into memory: it cannot fail
	return b.Bytes()
}
