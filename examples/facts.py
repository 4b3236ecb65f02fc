"""What the demo's questions are about: small facts, in English and in Chinese."""

from __future__ import annotations

from typing import NamedTuple


class Domain(NamedTuple):
    """A kind of fact: ways to ask it and the one sentence that states it, {} being the subject."""

    asks: dict[str, tuple[str, str, str]]
    states: dict[str, str]
    facts: str  # lines of: English subject | fact | Chinese subject | fact


CAPITALS = """France|Paris|法国|巴黎
Japan|Tokyo|日本|东京
China|Beijing|中国|北京
Italy|Rome|意大利|罗马
Spain|Madrid|西班牙|马德里
Germany|Berlin|德国|柏林
Russia|Moscow|俄罗斯|莫斯科
Egypt|Cairo|埃及|开罗
Britain|London|英国|伦敦
Greece|Athens|希腊|雅典
Kenya|Nairobi|肯尼亚|内罗毕
Canada|Ottawa|加拿大|渥太华
Cuba|Havana|古巴|哈瓦那
India|New Delhi|印度|新德里
Peru|Lima|秘鲁|利马
Thailand|Bangkok|泰国|曼谷
Vietnam|Hanoi|越南|河内
Norway|Oslo|挪威|奥斯陆
Poland|Warsaw|波兰|华沙
Austria|Vienna|奥地利|维也纳
Portugal|Lisbon|葡萄牙|里斯本
Ireland|Dublin|爱尔兰|都柏林
Finland|Helsinki|芬兰|赫尔辛基
Chile|Santiago|智利|圣地亚哥
Hungary|Budapest|匈牙利|布达佩斯
Mexico|Mexico City|墨西哥|墨西哥城"""

OPPOSITES = """hot|cold|热|冷
big|small|大|小
fast|slow|快|慢
high|low|高|低
long|short|长|短
heavy|light|重|轻
wet|dry|湿|干
rich|poor|富|穷
early|late|早|晚
new|old|新|旧
open|closed|开|关
bright|dark|亮|暗
full|empty|满|空
hard|soft|硬|软
deep|shallow|深|浅
wide|narrow|宽|窄
near|far|近|远
strong|weak|强|弱
true|false|真|假
up|down|上|下
left|right|左|右
black|white|黑|白"""

COLOURS = """snow|white|雪|白色
grass|green|草|绿色
the sky|blue|天空|蓝色
blood|red|血|红色
coal|black|煤|黑色
a banana|yellow|香蕉|黄色
a carrot|orange|胡萝卜|橙色
milk|white|牛奶|白色
chocolate|brown|巧克力|棕色
a ripe tomato|red|熟番茄|红色
a crow|black|乌鸦|黑色
an elephant|grey|大象|灰色
a flamingo|pink|火烈鸟|粉色
a lemon|yellow|柠檬|黄色
an eggplant|purple|茄子|紫色"""

HOMES = """a bee|in a hive|蜜蜂|蜂巢里
a bird|in a nest|小鸟|鸟窝里
a fish|in water|小鱼|水里
a horse|in a stable|马|马厩里
a spider|on a web|蜘蛛|网上
a rabbit|in a burrow|兔子|地洞里
a bear|in a cave|熊|山洞里
a camel|in the desert|骆驼|沙漠里
a penguin|on the ice|企鹅|冰上
a panda|in the bamboo|熊猫|竹林里
a monkey|in the trees|猴子|树上
a shark|in the sea|鲨鱼|大海里
a frog|in a pond|青蛙|池塘里
a dog|in a kennel|小狗|狗窝里
a cow|in a barn|奶牛|牛棚里"""

LEGS = """a spider|8 legs|蜘蛛|8条腿
a dog|4 legs|小狗|4条腿
a bird|2 legs|小鸟|2条腿
an ant|6 legs|蚂蚁|6条腿
a bee|6 legs|蜜蜂|6条腿
a horse|4 legs|马|4条腿
a crab|10 legs|螃蟹|10条腿
a snake|0 legs|蛇|0条腿
a person|2 legs|人|2条腿
a cow|4 legs|奶牛|4条腿"""

TOOLS = """cut paper|scissors|剪纸|剪刀
write a letter|a pen|写信|钢笔
watch the stars|a telescope|看星星|望远镜
eat soup|a spoon|喝汤|勺子
drive in nails|a hammer|钉钉子|锤子
sweep the floor|a broom|扫地|扫帚
tell the time|a clock|看时间|时钟
dry our hands|a towel|擦手|毛巾
open a lock|a key|开锁|钥匙
take a temperature|a thermometer|量体温|体温计
keep off the rain|an umbrella|挡雨|雨伞
sew clothes|a needle|缝衣服|针
brush our teeth|a toothbrush|刷牙|牙刷
take photos|a camera|拍照|照相机
dig a hole|a shovel|挖洞|铲子"""

JOBS = """bakes bread|the baker|烤面包|面包师
flies a plane|the pilot|开飞机|飞行员
puts out fires|the firefighter|灭火|消防员
teaches a class|the teacher|教书|老师
treats the sick|the doctor|治病|医生
grows crops|the farmer|种地|农民
cuts hair|the barber|剪头发|理发师
catches thieves|the police|抓小偷|警察
cooks meals|the cook|做菜|厨师
drives a bus|the driver|开公交车|司机
paints pictures|the painter|画画|画家
writes novels|the novelist|写小说|小说家
brings letters|the postman|送信|邮递员
repairs teeth|the dentist|看牙|牙医
sings songs|the singer|唱歌|歌手"""

DAYS = """Monday|Tuesday|星期一|星期二
Tuesday|Wednesday|星期二|星期三
Wednesday|Thursday|星期三|星期四
Thursday|Friday|星期四|星期五
Friday|Saturday|星期五|星期六
Saturday|Sunday|星期六|星期日
Sunday|Monday|星期日|星期一"""

MONTHS = """January|February|一月|二月
February|March|二月|三月
March|April|三月|四月
April|May|四月|五月
May|June|五月|六月
June|July|六月|七月
July|August|七月|八月
August|September|八月|九月
September|October|九月|十月
October|November|十月|十一月
November|December|十一月|十二月
December|January|十二月|一月"""

SUMS = "\n".join(f"{a} plus {b}|{a + b}|{a}加{b}|{a + b}" for a in range(1, 7) for b in range(a, 7))

DOMAINS = (
    Domain(
        {
            "en": (
                "what is the capital of {}?",
                "which city is the capital of {}?",
                "{} has which capital?",
            ),
            "zh": ("{}的首都是哪里？", "{}的首都是哪座城市？", "哪座城市是{}的首都？"),
        },
        {"en": "The capital of {} is {}.", "zh": "{}的首都是{}。"},
        CAPITALS,
    ),
    Domain(
        {
            "en": (
                "what is the opposite of {}?",
                "which word is the opposite of {}?",
                "{} is the opposite of what?",
            ),
            "zh": ("{}的反义词是什么？", "{}的反义词是哪个字？", "什么是{}的反义词？"),
        },
        {"en": "The opposite of {} is {}.", "zh": "{}的反义词是{}。"},
        OPPOSITES,
    ),
    Domain(
        {
            "en": ("what colour is {}?", "which colour does {} have?", "what is the colour of {}?"),
            "zh": ("{}是什么颜色？", "{}的颜色是什么？", "{}有什么颜色？"),
        },
        {"en": "The colour of {} is {}.", "zh": "{}的颜色是{}。"},
        COLOURS,
    ),
    Domain(
        {
            "en": ("where does {} live?", "where is the home of {}?", "where do I find {}?"),
            "zh": ("{}住在哪里？", "{}的家在哪里？", "在哪里能找到{}？"),
        },
        {"en": "The home of {} is {}.", "zh": "{}的家是在{}。"},
        HOMES,
    ),
    Domain(
        {
            "en": (
                "how many legs does {} have?",
                "how many legs are there on {}?",
                "{} has how many legs?",
            ),
            "zh": ("{}有几条腿？", "{}有多少条腿？", "{}一共有几条腿？"),
        },
        {"en": "Altogether {} has {}.", "zh": "{}一共有{}。"},
        LEGS,
    ),
    Domain(
        {
            "en": (
                "what do we use to {}?",
                "which tool do we need to {}?",
                "to {}, what do we use?",
            ),
            "zh": ("{}用什么？", "{}要用什么工具？", "我们用什么{}？"),
        },
        {"en": "To {} we use {}.", "zh": "我们{}用的是{}。"},
        TOOLS,
    ),
    Domain(
        {
            "en": ("who {}?", "who is it that {}?", "what do we call one who {}?"),
            "zh": ("谁{}？", "{}的人是谁？", "{}的人叫什么？"),
        },
        {"en": "The one who {} is {}.", "zh": "{}的人叫做{}。"},
        JOBS,
    ),
    Domain(
        {
            "en": ("which day comes after {}?", "what day follows {}?", "{} is before which day?"),
            "zh": ("{}之后是星期几？", "{}的第二天是星期几？", "过了{}是星期几？"),
        },
        {"en": "The day after {} is {}.", "zh": "{}的后一天是{}。"},
        DAYS,
    ),
    Domain(
        {
            "en": (
                "which month comes after {}?",
                "what month follows {}?",
                "{} is before which month?",
            ),
            "zh": ("{}之后是几月？", "{}的下个月是几月？", "过了{}是几月？"),
        },
        {"en": "The month after {} is {}.", "zh": "{}的下个月是{}。"},
        MONTHS,
    ),
    Domain(
        {
            "en": ("what is {}?", "how much is {}?", "{} is how much?"),
            "zh": ("{}等于几？", "{}是多少？", "{}得几？"),
        },
        {"en": "The sum {} is {}.", "zh": "{}的和是{}。"},
        SUMS,
    ),
)
