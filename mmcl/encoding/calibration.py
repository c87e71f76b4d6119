"""Texts on which a text tower's ranges for 8-bit integers are measured."""

TEXTS = (
    # Short ones: queries, titles, names, a word.
    "hello",
    "Berlin",
    "how to boil an egg",
    "What is the capital of France?",
    "best laptop under 1000 dollars 2024",
    "A dog runs across the grass.",
    "Two men are playing guitar on a stage.",
    "Stock markets fall sharply after interest rate decision",
    "red cotton t-shirt, size M, machine washable",
    "who wrote the brothers karamazov",
    "python sort dictionary by value",
    "Fwd: meeting moved to Thursday 3:30 pm!!",
    "ERROR 404: page not found (https://www.example.com/a/b?id=17&lang=en)",
    "def area(r): return 3.14159 * r ** 2",
    "Patient reports mild headache and nausea; no fever. BP 120/80, HR 72.",
    "I really didn't like this film, it was far too long :(",
    "1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144",
    "E = mc^2",
    # Sentences of an encyclopedia, a newspaper, a contract, a novel, a manual.
    "The mitochondrion is an organelle found in the cells of most eukaryotes, such as animals, plants and fungi.",
    "She closed the door behind her, listened for a moment to the rain, and began to climb the stairs in the dark.",
    "The parties agree that any dispute arising out of this agreement shall be settled by the courts of London.",
    "Officials said on Tuesday that at least twelve people had been injured when a bus left the road near the village.",
    "Remove the four screws on the underside, lift the cover, and disconnect the battery before touching the board.",
    "In 1804 the expedition set out from St. Louis with some forty men, three boats and supplies for two years.",
    "Gradient descent moves the parameters against the gradient of the loss, by steps as large as the learning rate.",
    "The committee has not yet decided whether the new stadium will be built beside the river or on the old airfield.",
    "Add the flour, a pinch of salt and 250 ml of milk, stir until smooth, and let the dough rest for half an hour.",
    # Other languages and scripts.
    "Der Zug nach München fährt heute wegen einer Störung erst um 17.40 Uhr von Gleis 9 ab.",
    "Les enfants jouent dans le jardin pendant que leur grand-mère prépare le déjeuner.",
    "El gobierno anunció ayer una reforma del sistema de salud que entrará en vigor el próximo año.",
    "La biblioteca resta chiusa il lunedì, ma i libri si possono restituire in qualunque momento.",
    "O rio nasce nas montanhas do norte e atravessa três países antes de chegar ao mar.",
    "De fietsers staken voorzichtig de drukke straat over.",
    "Wczoraj wieczorem padał deszcz, a dziś świeci słońce.",
    "Türkiye'nin en kalabalık şehri İstanbul'dur.",
    "Учёные обнаружили в озере новый вид рыб, который живёт на большой глубине.",
    "今天天气很好，我们打算下午去公园散步，然后在附近的餐馆吃晚饭。",
    "この本は十年前に出版されて以来、多くの人に読まれてきました。",
    "서울은 대한민국의 수도이며 인구가 약 천만 명이다.",
    "تقع المدينة القديمة على ضفاف النهر ويزورها آلاف السياح كل عام.",
    "भारत में कई भाषाएँ बोली जाती हैं और हर राज्य की अपनी संस्कृति है।",
    # Paragraphs.
    "A lighthouse is a tower that shows a strong light so that ships can tell where they are at night. The first ones "
    "were fires on hills. Later, stone towers held lamps that burned oil, then gas, and at last electric lamps whose "
    "beams are bundled by lenses of many rings of glass. Each has a pattern of flashes of its own, which a sailor "
    "looks up in a list of lights. Most of them no longer have a keeper: a computer on land switches the lamp on, "
    "watches it and reports when it fails. Some have become small hotels, and others are museums with a view over the "
    "coast.",
    "Our return policy: items may be sent back within 30 days of delivery if they are unused and in the original box. "
    "Please write to support@example.com with your order number (for instance #48213-B) before you send anything. "
    "Refunds are made to the card that was charged, usually within five to seven business days; shipping costs of "
    "$4.99 are not refunded. Gift cards, earphones and opened software cannot be returned.",
    "We study how the size of the batch changes what a contrastive model learns. With more negatives a loss is "
    "harder, and its gradient points more often to items that are truly confusable; but a batch of 65,536 needs "
    "either many devices or a way to compute the gradient in parts. Our experiments on three data sets (1.2M, 3.3M "
    "and 12M pairs) show gains of 2.1, 1.4 and 0.6 points of recall@10, which vanish when the temperature is not "
    "tuned again. We conclude that batch size and temperature should be chosen together.",
)
"""Of many kinds, lengths and scripts, so that few texts have states outside of the ranges of these."""
