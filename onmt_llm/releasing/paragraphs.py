"""Text that releases are compared on: prose, dialogues, instructions, a letter, in plain English; our own words."""

PARAGRAPHS = """\
The ferry left the harbour a little after six, when the lamps along the quay were still lit and the gulls had not \
yet made up their minds about the day. Marta stood at the rail with a paper cup of coffee that was too hot to drink. \
She had crossed this water a hundred times as a child, and every time her grandfather had told her the same thing: \
watch the colour of the sea, not its height. A grey sea would let you through. A green one wanted something. This \
morning it was neither, only dark and very flat, like a sheet of slate that someone had forgotten to write on.

How does a bicycle stay upright? For a long time people believed that the spinning wheels did it, as a spinning top \
stays on its point. The effect is real but small. More important is that a rolling bicycle steers into its own fall: \
when it leans to the left, the front wheel turns to the left, and the point where the tyre touches the road moves \
back under the weight. A bicycle without a rider can do this for some time, provided that it is fast enough. Below \
about fifteen kilometres an hour most of them wobble and fall over, and the rider has to do the work.

User: I have two litres of milk that will turn sour by Friday. What can I make with them?
Assistant: Two things come to mind. You could make yoghurt: warm the milk to 85 degrees, let it cool to 45, stir in \
three spoonfuls of plain yoghurt, and keep it warm overnight. Or you could make a simple fresh cheese: heat the milk \
until it nearly boils, add the juice of two lemons, wait ten minutes, and pour it through a cloth. The cheese keeps \
for about four days.
User: The cheese sounds easier. How much will I get?
Assistant: From two litres of whole milk, roughly 300 grams. If the milk is skimmed, expect a third less.

Instructions for the night shift:
1. Check that the back door is locked and that the alarm shows a green light.
2. Write down the temperature of both freezers every two hours. It must stay below -18 °C.
3. If the phone rings, let it ring four times before you answer. The day shift often hangs up after three.
4. Do not move the blue crates. They are collected at 05:30 by a driver who knows where they are.
5. Leave the keys in the drawer, not on the table.

The committee met on 14 March 2019 and again on 2 April. Of its 23 members, 17 were present at the first meeting and \
21 at the second. The budget of 48,500 was approved with 12 votes to 7, two members abstaining; the proposal to move \
the library's opening hours from nine to half past eight was put off until the autumn. Nobody remembered to thank \
the treasurer, who had spent eleven evenings on the figures, and she did not mention it.

User: Can you explain what an average is, in words that my daughter understands? She is seven.
Assistant: Imagine that four children have some sweets. One has six, one has four, one has two and one has none. \
They put all of them in a bowl, which makes twelve, and share them out again so that everyone gets the same number. \
Everyone gets three. That number is the average: what each would have if all had the same.
User: She asks whether anyone really had three.
Assistant: No, and that is a good question. The average may be a number that nobody had before the sharing. It says \
something about all of them together, and nothing about any one of them.

A star is a balance between two forces. Gravity pulls all of its gas towards the centre; the heat of the reactions \
in the core pushes outwards. While hydrogen lasts, the balance corrects itself: if the core burns too fast it \
expands, cools, and burns more slowly. The Sun has kept this up for four and a half billion years and has fuel for \
about as long again. Heavier stars have more to burn, but they are so much brighter that they run out sooner. The \
largest live only a few million years, which is less time than it took the first apes to come down from the trees.

The market opens at seven, but those who know it come earlier. At half past six, while the traders are still \
unpacking their crates, you can find the best peaches and hear the news of the village. Mrs Roche, who has sold \
cheese there for thirty years, knows the names of all the dogs. She does not sell on Sundays, and she has never said \
why.

The old watchmaker opened his shop on only three days of the week. Whoever brought a watch was given no ticket, only \
a look, and that was enough. Once he forgot a pocket watch in a drawer for two years; when its owner asked for it at \
last, it was running, and right to the second. The owner paid for the repair and asked what had been wrong with it. \
Nothing, said the old man. It wanted to be left alone for a while.

To plant a young tree, dig a hole twice as wide as its roots and no deeper. Loosen the earth at the sides. Set the \
tree in the hole so that the place where the trunk begins to widen is level with the ground, fill in the earth that \
came out, and press it down with your foot. Water it well, even if it is raining. Cover the ground around it with \
leaves or bark, but leave a hand's breadth free around the trunk. In the first two summers, give it a bucket of \
water every week.

Dear Mr Okafor,

Thank you for your letter of last week. You asked whether the pump could be repaired or had to be replaced. Our \
engineer has looked at it, and the answer is a little of both: the motor is sound, but the housing has a crack as \
long as a finger and cannot be welded. A new housing costs 140, and fitting it takes half a day. A new pump of the \
same kind would cost 610. We suggest the repair, and we would do it before the end of the month, when the rain \
usually begins. Please let us know by Thursday if you agree.

With kind regards,
Ellen Brandt

When the two brothers divided the farm, they did it in the old way. The elder drew the line, and the younger chose \
his side. The elder walked the fields for three days before he put in the first stake. He weighed the orchard \
against the river meadow, the good road against the early sun, the house with the new roof against the barn with the \
old one. On the fourth morning his brother came, looked along the stakes for as long as it takes to smoke a pipe, \
and said that either side would do. They had dinner together that evening, and neither of them ever moved a stake.

Most mistakes in arithmetic are made where one is sure of oneself. A child who adds 478 and 356 on paper will get \
the carry wrong now and then, but will nearly always copy the numbers correctly; an accountant does the opposite. It \
helps to check a sum in another way than the one in which it was done. Add the column upwards if you added it \
downwards. Round every figure first and see whether the result could be right at all. 478 is nearly 500, 356 is a \
little more than 350, so the sum must be near 850, and less: 834 looks right, 734 does not.

The wind had dropped by the time they reached the hut. Inside there was a stove, a table with a deep burn in the \
shape of an iron, and a book in which everyone who had ever slept there had written a line. Most had written about \
the weather. One had written a recipe for soup. On the last page, in pencil, somebody had begun a letter and stopped \
after the first sentence: I have decided to stay until the snow goes, and after that I will know what to do about \
the house.
"""
